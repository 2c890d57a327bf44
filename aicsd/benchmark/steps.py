"""Training steps with a clock: the step of ``engine.step``, and where its time goes.

Imported by nothing that trains: a clock waits for the device after every part, which costs time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from lightning_fabric import Fabric
from torch import Tensor

from aicsd.distiller import Distiller
from aicsd.engine.step import Training, train_step
from aicsd.evaluation.cost import synchronize
from aicsd.run_config import FitConfig
from aicsd.types import Batch

PARTS = ("data", "teacher", "student", "losses", "backward", "optimizer")
"""Parts of a step, in the order of a table. ``data``: waiting for the batch and taking it to the
device; ``optimizer``: clipping, stepping and clearing the gradients."""


class ClockedSteps:
    """Optimizer steps of a config, each with the seconds of its parts.

    Args:
        config: settings of the run.
        distiller: student to train, with terms and teacher.
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
        self._training = Training(config.optimizer.in_steps(total), config.seed, distiller, fabric)
        self._batches, self._total = batches, total
        self._networks = {"student": distiller.student, "teacher": distiller.teacher}
        self._done = 0
        self._last = 0.0
        self._seconds: dict[str, float] = {}
        self.losses: dict[str, Tensor] = {}
        """Losses of the last batch."""

    def step(self) -> dict[str, float]:
        """Do one optimizer step; seconds of each of ``PARTS``."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        synchronize(self._training.fabric.device)
        self._last = time.perf_counter()
        with ExitStack() as hooks:  # for this step alone: the networks run elsewhere too
            for part, network in self._networks.items():
                if network is not None:
                    hooks.enter_context(
                        network.register_forward_hook(lambda *_, part=part: self._lap(part))
                    )
            progress = self._done / self._total
            result = train_step(self._training, self._batches, self._done, progress, self._lap)
        self._done += 1
        self.losses = result.losses
        return self._seconds

    def _lap(self, part: str) -> None:
        synchronize(self._training.fabric.device)
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now


def repeated(batches: list[Batch]) -> Iterator[Batch]:
    """The same batches again and again."""
    while True:
        yield from batches


def peak_memory(device: torch.device) -> int | None:
    """Bytes: on CUDA the most that was allocated, elsewhere the most that this process had resident
    (RSS high-water mark) since it began; None where the system gives no number.
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
