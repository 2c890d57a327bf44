"""Forward and backward passes of the networks as CUDA graphs: one launch in place of thousands.

A small network on small batches leaves a fast GPU waiting for the next kernel. A graph holds all
of them and is launched at once. What differs from step to step, losses and optimizer, stays as it
is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.models import Segmenter
from aicsd.run_config import FitConfig
from aicsd.teacher.runtime import WARM_UP
from aicsd.types import SegOutput


def check_graphs(config: FitConfig, device: torch.device) -> None:
    """Refuse what a recording cannot repeat.

    Raises:
        UserError: names the option to change.
    """
    if not config.cuda_graphs:
        return
    needed = {
        "accelerator": (device.type, "cuda"),
        "precision": (config.precision, "32-true"),
        "teacher_runtime": (getattr(config, "teacher_runtime", "eager"), "eager"),
        "devices": (config.devices * config.num_nodes, 1),
        "optimizer.accumulate": (config.optimizer.accumulate, 1),
    }
    for name, (given, wanted) in needed.items():
        if given != wanted:
            raise UserError(f"cuda_graphs needs {name} {wanted}, and it is {given}")


class StudentGraph:
    """A student in training mode whose two passes are recorded.

    Args:
        student: on a GPU, in training mode. The statistics of its batch norms are kept.
        image: (B, 3, H, W) uint8, of the shape and layout of every further batch.
    """

    def __init__(self, student: Segmenter, image: Tensor) -> None:
        self.student = student
        self._names: list[str] = []
        kept = [buffer.clone() for buffer in student.buffers()]
        self._flat: Any = torch.cuda.make_graphed_callables(
            _Flat(student, self._names),
            (image.clone(),),
            num_warmup_iters=WARM_UP,
            allow_unused_input=True,
        )
        for buffer, before in zip(student.buffers(), kept, strict=True):
            buffer.copy_(before)

    def __call__(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 -> logits and features, with their graph."""
        logits, *features = self._flat(image)
        named = dict(zip(self._names, features, strict=True))
        return SegOutput(logits, named, self.student.align_corners)


class _Flat(nn.Module):
    """A student that gives a tuple of tensors.

    Args:
        student: is run.
        names: gets the names of the features, in the order of the tuple.
    """

    def __init__(self, student: Segmenter, names: list[str]) -> None:
        super().__init__()
        self.student, self.names = student, names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        output: SegOutput = self.student(image)
        self.names[:] = output.features
        return output.logits, *output.features.values()
