"""The one owner of the teacher: frozen, fast, its classes in the student's order."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.models import MapInfo, Segmenter
from aicsd.teacher.class_map import ClassMap, with_classes
from aicsd.teacher.folding import fold_batch_norm
from aicsd.teacher.runtime import Forward, TeacherGraph, start_runtime
from aicsd.types import Runtime, SegOutput


class Teacher(nn.Module):
    """A frozen network: always in evaluation mode, no gradient, its classes in student order.

    Args:
        model: a trained segmenter; it normalises its own input. Its parameters get frozen.
        classes: classes of the student. The teacher may have more, in any order.
        class_map: map of the teacher's classes to those of the data: a YAML file, the name of a map
            of the package, or a mapping. Several may become one.

    Raises:
        UserError: a class that the teacher lacks, or a map that does not fit.
    """

    def __init__(
        self, model: Segmenter, classes: Classes, class_map: str | Path | ClassMap | None = None
    ) -> None:
        super().__init__()
        self.notes: list[str] = []
        """Remarks on its classes."""
        if class_map is not None or model.classes.names != classes.names:
            model, ignored = with_classes(model, classes, class_map)
            if ignored:
                self.notes.append(
                    "classes of the teacher that the data does not have are left out: "
                    f"{', '.join(ignored)}"
                )
        self.model = model.requires_grad_(False)
        self.eval()
        self._forward: tuple[Forward] = (self.model,)  # no submodule

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in evaluation mode, for any ``mode``."""
        return super().train(False)

    @property
    def maps(self) -> dict[str, MapInfo]:
        """Maps that the teacher offers, by name."""
        return self.model.maps

    def speed_up(self, runtime: Runtime, side: int) -> None:
        """Fold batch norms into convolutions, lay weights out for the device, start ``runtime``.

        Tried out on an image of (``side``, ``side``).
        """
        size = self.model.input.fit((side, side))
        random = torch.Generator().manual_seed(0)
        example = torch.rand((1, 3, *size), generator=random)
        example = example.to(self.model.device, self.model.dtype)
        net = fold_batch_norm(self.model.net, example).to(memory_format=torch.channels_last)
        self.model = self.model.with_net(net)
        self.eval()
        self._forward = (start_runtime(self.model, runtime),)

    def record(self, image: Tensor) -> None:
        """Record the forward pass as a CUDA graph, for batches of this shape and layout."""
        self._forward = (TeacherGraph(self._forward[0], image),)

    @torch.no_grad()
    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 -> logits in the student's class order, without autograd."""
        return self._forward[0](image)
