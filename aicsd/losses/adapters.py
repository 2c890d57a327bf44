"""Adapters: small trainable networks between a map of the student and one of the teacher.

Each takes (B, D_S, H, W) and returns (B, D_T, H, W). They belong to a term: they are trained with
the student and never enter its file.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


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
    "identity": identity,
    "conv1x1": conv1x1,
    "conv1x1_bn": conv1x1_bn,
    "mlp": mlp,
    "generator": generator,
}
