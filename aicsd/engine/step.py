"""Optimizer step of any method: forward passes, losses, backward pass, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aicsd.distiller import Distiller
from aicsd.engine.finite import FiniteCheck
from aicsd.engine.graphs import StudentGraph
from aicsd.engine.optimizer import build_optimizer, set_learning_rate
from aicsd.models import Segmenter
from aicsd.run_config import OptimizerConfig
from aicsd.types import Batch


def no_clock(part: str) -> None:
    """Do nothing at the end of a part of a step."""


class StepResult(NamedTuple):
    """Result of one step, for the log."""

    losses: dict[str, Tensor]
    """Losses of its last batch, detached: ``loss`` and every term."""
    lr: float
    """Learning rate of the backbone."""
    images: int
    """Images of this process."""


class Training:
    """A distiller on its device with its optimizer and, optionally, an average of its weights.

    Args:
        settings: settings of the optimizer.
        seed: seed of dropout.
        distiller: student to train, with terms and teacher.
        fabric: launched.
    """

    def __init__(
        self, settings: OptimizerConfig, seed: int, distiller: Distiller, fabric: Fabric
    ) -> None:
        self.settings, self.seed, self.fabric = settings, seed, fabric
        self.distiller = distiller
        if distiller.teacher is not None:
            distiller.teacher.to(fabric.device)
        distiller.student.to(memory_format=torch.channels_last)  # the layout of the images
        self.model: Any  # Fabric's wrapper of the distiller, whose class is private
        self.optimizer: torch.optim.Optimizer
        self.model, self.optimizer = fabric.setup(distiller, build_optimizer(settings, distiller))
        self.average = _average(distiller.student, settings.ema)
        self.finite = FiniteCheck(distiller, fabric, settings.skip_nonfinite)

    @property
    def final(self) -> Segmenter:
        """The network that gets evaluated and saved: the average of the weights, if one is kept."""
        if self.average is None:
            return self.distiller.student
        assert isinstance(self.average.module, Segmenter)
        return self.average.module

    def record(self, batch_size: int, crop: int) -> None:
        """Record the passes of the networks as CUDA graphs, for batches of this shape.

        Before a loader starts: its threads must not use the device during a recording.
        """
        pixels = torch.zeros(
            (batch_size, crop, crop, 3), dtype=torch.uint8, device=self.fabric.device
        )
        image = pixels.permute(0, 3, 1, 2)  # the layout of a batch
        if self.distiller.teacher is not None:
            self.distiller.teacher.record(image)
        self.distiller.train()
        self.distiller.recorded = StudentGraph(self.distiller.student, image)

    def state_dict(self) -> dict[str, Any]:
        """Everything from which the training continues exactly."""
        states = {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the scale of 16-mixed
        }
        return states if self.average is None else states | {"average": self.average.state_dict()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: states of another network or optimizer.
        """
        self.distiller.load_state_dict(states["distiller"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.fabric.strategy.precision.load_state_dict(states["precision"])
        if self.average is not None:
            self.average.load_state_dict(states["average"])


def train_step(
    training: Training,
    batches: Iterator[Batch],
    step: int,
    progress: float,
    clock: Callable[[str], None] = no_clock,
) -> StepResult:
    """Train on the next ``accumulate`` batches.

    Args:
        training: networks and optimizer.
        batches: training batches; one step takes as many as it needs.
        step: number of the step, from 0; dropout depends on it.
        progress: part of training that is done, in [0, 1].
        clock: called with the name of each part of the step when it ends: ``data``, ``losses``,
            ``backward``, ``optimizer``.

    Raises:
        NonFiniteLossError: see :class:`aicsd.engine.finite.FiniteCheck`.
    """
    settings, fabric = training.settings, training.fabric
    training.model.train()
    lr = set_learning_rate(training.optimizer, settings, progress, step)
    torch.manual_seed(step_seed(training.seed, step, fabric.global_rank))
    training.finite.begin()
    images = 0
    for part in range(settings.accumulate):
        batch = next(batches).to(fabric.device)
        clock("data")
        unfinished = part < settings.accumulate - 1
        with fabric.no_backward_sync(training.model, enabled=unfinished):
            losses: dict[str, Tensor] = training.model(batch, progress)
            clock("losses")
            if training.finite.allows_backward(losses, step):
                fabric.backward(losses["loss"] / settings.accumulate)
            clock("backward")
        images += len(batch.image)
    if training.finite.allows_update(step):
        _update(training)
    training.optimizer.zero_grad(set_to_none=True)
    clock("optimizer")
    return StepResult({name: value.detach() for name, value in losses.items()}, lr, images)


def _update(training: Training) -> None:
    if training.settings.clip:
        # 16-mixed finds its loss scale by steps with infinite gradients, which it skips
        training.fabric.clip_gradients(
            training.model,
            training.optimizer,
            max_norm=training.settings.clip,
            error_if_nonfinite=False,
        )
    training.optimizer.step()
    if training.average is not None:
        training.average.update_parameters(training.distiller.student)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout, by (seed, step, rank) only, so that it does not depend on interruptions."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _average(student: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    update = get_ema_multi_avg_fn(decay)
    return AveragedModel(student, multi_avg_fn=update, use_buffers=True)
