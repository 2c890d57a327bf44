"""Types and names that every part shares.

Shapes: ``B`` images in a batch, ``C`` classes, ``H`` and ``W`` rows and columns of pixels,
``D`` channels of a feature map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # a dataset or a command line needs no PyTorch
    from torch import Tensor

IGNORE_INDEX = 255
"""Class id of unlabelled pixels. Losses on labels and metrics skip them."""

LOGITS = "logits"
"""Name of the logits among the maps of a network."""

OWN_MODULE = "module"
"""Family, in a config, of a network that was given as a module."""

EvaluationProtocol = Literal["standard", "released"]
"""``released`` repeats the released AICSD code where that decides its figures; see docs."""

Runtime = Literal["eager", "compiled", "openvino"]
"""Runtime of the frozen teacher."""


Output = Literal["logits", "native", "labels"]
"""Output of an exported network: logits at the image's size, at the network's own, or class ids."""


class Batch(NamedTuple):
    """A batch of a loader."""

    image: Tensor
    """(B, 3, H, W) uint8, RGB."""
    mask: Tensor
    """(B, H, W) class ids; ``IGNORE_INDEX`` where there is no label. uint8 from a loader, 8x less
    data to transfer; int64 after :meth:`to`, as losses need it."""
    valid: Tensor
    """(B, H, W) bool; False where a crop reaches beyond the image (padding).

    An unlabelled pixel of the image is valid: the teacher still provides a target there.
    """
    teacher_logits: Tensor | None = None
    """(B, C, h, w) from a cache; without it the teacher runs on the batch."""

    def to(self, device: object) -> Batch:
        there = Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[call-overload, arg-type]
        return there._replace(mask=there.mask.long())


class SegOutput(NamedTuple):
    """Output of a segmentation network."""

    logits: Tensor
    """(B, C, h, w) at the network's own resolution (stride 4 for DeepLabV3+)."""
    features: dict[str, Tensor]
    """Feature maps by name, each (B, D, h', w')."""
    align_corners: bool = False
    """Whether these maps are resized with aligned corners, as the network declares it."""


def has_own_name(family: str) -> bool:
    """Whether a family, in a config, names its network alone: one of a library, or a module.

    Others are built on the backbone of the config.
    """
    return ":" in family or family == OWN_MODULE
