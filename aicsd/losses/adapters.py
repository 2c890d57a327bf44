"""Adapters: small trainable networks between a map of the student and one of the teacher.

Each takes (B, D_S, H, W) and returns (B, D_T, H, W). They belong to a term: they are trained with
the student and never enter its file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from aicsd.errors import UserError
from aicsd.types import LOGITS

IDENTITY = "identity"


def identity(student_channels: int, teacher_channels: int) -> nn.Module:  # noqa: ARG001
    """No adapter: the student's map as it is."""
    return nn.Identity()


def conv1x1(student_channels: int, teacher_channels: int) -> nn.Module:
    """A linear map of the channels (Romero et al., FitNets, arXiv 1412.6550)."""
    return nn.Conv2d(student_channels, teacher_channels, 1, bias=False)


def conv1x1_bn(student_channels: int, teacher_channels: int) -> nn.Module:
    """1x1 convolution and batch norm (Heo et al., Overhaul, arXiv 1904.01866)."""
    return nn.Sequential(
        conv1x1(student_channels, teacher_channels), nn.BatchNorm2d(teacher_channels)
    )


def mlp(student_channels: int, teacher_channels: int) -> nn.Module:
    """1x1 convolution, batch norm, ReLU, 1x1 convolution (Yang et al., CIRKD, arXiv 2204.06986)."""
    return nn.Sequential(
        *conv1x1_bn(student_channels, teacher_channels).children(),
        nn.ReLU(),
        conv1x1(teacher_channels, teacher_channels),
    )


def generator(student_channels: int, teacher_channels: int) -> nn.Module:
    """1x1 alignment, then 3x3, ReLU, 3x3 (Yang et al., MGD, arXiv 2205.01529)."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1),
        nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
    )


ADAPTERS: dict[str, Callable[[int, int], nn.Module]] = {
    IDENTITY: identity,
    "conv1x1": conv1x1,
    "conv1x1_bn": conv1x1_bn,
    "mlp": mlp,
    "generator": generator,
}


def make_adapters(
    where: str, kind: str, widths: Mapping[str, tuple[int, int]], *, same_channels: bool
) -> nn.ModuleList:
    """One adapter for each pair of maps; beside features, logits are compared as they are.

    Args:
        where: the term, for messages.
        kind: one of :data:`ADAPTERS`.
        widths: channels of the student's map and of the teacher's, by the name of the former.
        same_channels: whether the loss needs equal numbers.

    Raises:
        UserError: numbers of channels that differ and that nothing bridges.
    """
    found = []
    for name, (own, other) in widths.items():
        bridge = IDENTITY if name == LOGITS and len(widths) > 1 else kind
        if own != other and same_channels and bridge == IDENTITY:
            raise UserError(f"{where}: {_difference(name, own, other)}")
        found.append(ADAPTERS[bridge](own, other))
    return nn.ModuleList(found)


def _difference(name: str, own: int, other: int) -> str:
    if name == LOGITS:
        return (
            f"the student has {own} logits per pixel and the teacher {other}; both need one for "
            "each class of the data"
        )
    bridges = ", ".join(adapter for adapter in ADAPTERS if adapter != IDENTITY)
    return (
        f"the map {name!r} has {own} channels in the student and {other} in the teacher, and the "
        f"loss compares equal numbers: set adapter to {bridges}"
    )
