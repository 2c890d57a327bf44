"""Training steps with a clock: the step of ``engine.fit``, and where its time goes.

Imported by nothing that trains: a clock waits for the device after every part, which costs time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from aicsd.benchmark.timing import synchronize
from aicsd.distiller import Distiller
from aicsd.engine.config import FitConfig
from aicsd.engine.optimizer import build_optimizer, set_learning_rate
from aicsd.types import Batch

PARTS = ("data", "teacher", "student", "losses", "backward", "optimizer")
"""Of a step, in the order of a table. ``data``: waiting for the batch and taking it to the device;
``optimizer``: clipping, stepping and clearing the gradients."""


class ClockedSteps:
    """Optimizer steps of a config, each with the seconds of its parts.

    Args:
        config: of the run; an average of the weights (``optimizer.ema``) is not kept.
        distiller: gets trained.
        batches: enough of them for every step.
        total: steps of the whole run, on which weights and learning rate depend.
        fabric: launched, for one process.
    """

    def __init__(
        self,
        config: FitConfig,
        distiller: Distiller,
        batches: Iterator[Batch],
        total: int,
        fabric: Fabric,
    ) -> None:
        self._config, self._batches, self._total, self._fabric = config, batches, total, fabric
        if distiller.teacher is not None:
            distiller.teacher.to(fabric.device)
        self._networks = {"student": distiller.student, "teacher": distiller.teacher}
        self._model: Any
        self._optimizer: Any
        self._model, self._optimizer = fabric.setup(
            distiller, build_optimizer(config.optimizer, distiller)
        )
        self._done = 0
        self._last = 0.0
        self._seconds: dict[str, float] = {}
        self.losses: dict[str, Tensor] = {}
        """Of the last batch."""

    def step(self) -> dict[str, float]:
        """One optimizer step; the seconds of each of ``PARTS``."""
        settings, fabric = self._config.optimizer, self._fabric
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._model.train()
        part_done = self._done / self._total
        set_learning_rate(self._optimizer, settings, part_done)
        synchronize(fabric.device)
        self._last = time.perf_counter()
        for _ in range(settings.accumulate):
            batch = next(self._batches).to(fabric.device)
            self._lap("data")
            losses = self._forward(batch, part_done)
            self._lap("losses")
            fabric.backward(losses["loss"] / settings.accumulate)
            self._lap("backward")
        if settings.clip:
            fabric.clip_gradients(self._model, self._optimizer, max_norm=settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._lap("optimizer")
        self._done += 1
        self.losses = {name: value.detach() for name, value in losses.items()}
        return self._seconds

    def _forward(self, batch: Batch, part_done: float) -> dict[str, Tensor]:
        with ExitStack() as hooks:  # for this pass alone: the networks run elsewhere too
            for part, network in self._networks.items():
                if network is not None:
                    hook = partial(self._after, part)
                    hooks.enter_context(network.register_forward_hook(hook))
            losses: dict[str, Tensor] = self._model(batch, part_done)
        return losses

    def _after(self, part: str, *_: object) -> None:
        self._lap(part)

    def _lap(self, part: str) -> None:
        synchronize(self._fabric.device)
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now


def repeated(batches: list[Batch]) -> Iterator[Batch]:
    """The same batches again and again."""
    while True:
        yield from batches


def peak_memory(device: torch.device) -> int | None:
    """Bytes: on CUDA the most that was allocated, elsewhere the most that this process had resident
    (RSS high-water mark) since it began; None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
