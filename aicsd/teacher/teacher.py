"""The one owner of the teacher: frozen, fast, its classes in the student's order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models import MapInfo, Segmenter, as_output
from aicsd.teacher.folding import fold_batch_norm
from aicsd.teacher.runtime import Look, start_runtime
from aicsd.types import Runtime, SegOutput


class Teacher(nn.Module):
    """A frozen network: always in evaluation mode, no gradient, its classes in student order.

    Args:
        model: a trained segmenter; it normalises its own input. Its parameters get frozen.
        classes: of the student. The teacher may know more of them, in any order.

    Raises:
        UserError: a class that the teacher does not know.
    """

    def __init__(self, model: Segmenter, classes: Classes) -> None:
        super().__init__()
        if model.classes.names != classes.names:
            unknown = [name for name in classes.names if name not in model.classes.names]
            if unknown:
                raise UserError(
                    f"the teacher does not know the classes {unknown}; it knows "
                    f"{list(model.classes.names)}: train it on the same classes, or, if it knows "
                    "them under other names, aicsd import --classes FILE renames those of a "
                    "released checkpoint"
                )
            order = [model.classes.names.index(name) for name in classes.names]
            model = model.with_net(_SelectClasses(model.net, order), classes)
        self.model = model.requires_grad_(False)
        self.eval()
        self._look: tuple[Look] = (self.model,)  # no submodule

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in evaluation mode, whatever ``mode`` says."""
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
        self._look = (start_runtime(self.model, runtime),)

    @torch.no_grad()
    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 -> logits in the student's class order, without autograd."""
        return self._look[0](image)


class _SelectClasses(nn.Module):
    """A network with some of its classes, in another order."""

    order: Tensor

    def __init__(self, net: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", torch.tensor(order))

    def forward(self, image: Tensor) -> SegOutput:
        output = as_output(self.net(image))
        return output._replace(logits=output.logits[:, self.order])
