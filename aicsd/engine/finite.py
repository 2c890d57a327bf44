"""Losses that are not finite: noticed in the step in which they begin, or skipped and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from aicsd.errors import UserError

NEVER = 2**62
LARGEST_ROW = 50
"""Steps that are skipped one after the other; more mean that no step will work any more."""


class NonFiniteLossError(Exception):
    """A loss of this process, or of another one, is not finite; the weights are as before."""

    def __init__(self, step: int, rank: int) -> None:
        super().__init__(f"step {step}, process {rank}")
        self.step = step
        """Number of the step, from 0."""
        self.rank = rank
        """The first process that has such a loss."""


class FiniteCheck:
    """Checks the losses of every step.

    On a CPU, and where such steps are skipped, a step is checked before its backward pass. On
    other devices this would wait for the device at every step. There the number of the first bad
    step is kept on the device, and read where the log is written (:meth:`require`).

    Args:
        model: its buffers, such as the statistics of batch norm, stay as they were in a step that
            is skipped.
        fabric: launched.
        skip: skip the update of such a step, and continue.
    """

    def __init__(self, model: nn.Module, fabric: Fabric, skip: bool) -> None:
        self._model, self._fabric, self._skips = model, fabric, skip
        self.at_once = skip or fabric.device.type == "cpu"
        self._first = torch.full((), NEVER, dtype=torch.int64, device=fabric.device)
        self._buffers: list[Tensor] = []
        self._bad = False
        self.skipped = 0
        """Steps that were skipped so far."""
        self._row = 0

    def begin(self) -> None:
        """Begin a step."""
        self._bad = False
        if self._skips:
            self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def allows_backward(self, losses: Mapping[str, Tensor], step: int) -> bool:
        """Check the losses of one batch; all processes get the same result.

        Raises:
            NonFiniteLossError: one is not finite, and such steps are not skipped.
        """
        if self._bad:
            return False
        values = torch.stack([value.detach().float() for value in losses.values()])
        finite = values.isfinite().all()
        if not self.at_once:
            self._first = torch.where(finite, self._first, self._first.clamp_max(step))
            return True
        worst = self._first_rank(finite)
        if worst is None:
            return True
        if not self._skips:
            raise NonFiniteLossError(step, worst)
        self._bad = True
        return False

    def allows_update(self, step: int) -> bool:
        """Whether the optimizer may take the step; otherwise it is undone and counted.

        Raises:
            UserError: too many have been skipped, one after the other.
        """
        # infinite gradients adjust the scale of the loss; the scaler skips such steps
        scaled = getattr(self._fabric.strategy.precision, "scaler", None) is not None
        if self._skips and not self._bad and not scaled:
            grads = [p.grad for p in self._model.parameters() if p.grad is not None]
            finite = torch.stack([grad.isfinite().all() for grad in grads]).all()
            self._bad = self._first_rank(finite) is not None
        if not self._bad:
            self._row = 0
            return True
        with torch.no_grad():
            for buffer, before in zip(self._model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self.skipped += 1
        self._row += 1
        if self._row > LARGEST_ROW:
            raise UserError(
                f"{self._row} steps in a row up to step {step + 1} had a loss or gradient that is "
                "not finite, and were skipped; lower optimizer.lr or a weight"
            )
        return False

    def require(self) -> None:
        """Check the steps since the last call, as recorded on the device.

        Raises:
            NonFiniteLossError: a loss of an earlier step was not finite.
        """
        if self.at_once:
            return
        first = self._first.clone()
        if self._fabric.world_size > 1:
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
        step = int(first.item())
        if step < NEVER:
            worst = self._first_rank(self._first > step)
            raise NonFiniteLossError(step, worst or 0)

    def _first_rank(self, finite: Tensor) -> int | None:
        """The first process with ``finite`` False; None if there is none."""
        world: Any = self._fabric.world_size
        rank = torch.where(finite, world, self._fabric.global_rank)
        if world > 1:
            distributed.all_reduce(rank, distributed.ReduceOp.MIN)
        found = int(rank.item())
        return None if found == world else found
