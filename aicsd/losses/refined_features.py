"""Attention-guided distillation of features (Mansourian et al., AttnFD, arXiv 2403.05451)."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from aicsd.losses._checks import (
    check_sizes,
    match_valid,
    prepare_pair,
    valid_pixels,
    without_autocast,
)
from aicsd.losses._directions import directions
from aicsd.losses._module import LossModule

LEAST_WIDTH = 4


def refined_features_loss(
    student: Tensor, teacher: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """mean_b ||f_S,b / ||f_S,b|| - f_T,b / ||f_T,b||||^2, norms over the whole map of image b.

    Args:
        student: (B, D, H, W) refined features of the student.
        teacher: (B, D, H, W) refined features of the teacher.
        valid: (B, H', W') bool; padding (False) counts neither in the norms nor in the distance.

    Returns:
        Unweighted scalar in [0, 4]; 0 where the maps agree but for their length.

    Raises:
        UserError: shapes that differ.
    """
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student)
    pair = [student, teacher]
    if where is not None:
        pair = [maps.masked_fill(~where[:, None], 0.0) for maps in pair]
    ours, theirs = (directions(maps.flatten(1), dim=1) for maps in pair)
    return (ours - theirs).square().sum(dim=1).mean()


class AttentionGates(nn.Module):
    """CBAM (Woo et al., arXiv 1807.06521): a gate for each channel, then one for each pixel.

    Args:
        channels: D.
        reduction: D over the width between the two layers that make the channels' gates.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        width = max(channels // reduction, LEAST_WIDTH)
        self.channel = nn.Sequential(
            nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels)
        )
        self.pixel = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, maps: Tensor, where: Tensor) -> Tensor:
        """Features (B, D, H, W), and (B, H, W) bool where they count -> gated features, else 0."""
        outside = ~where[:, None]
        maps = maps.masked_fill(outside, 0.0)
        counts = where.sum(dim=(1, 2)).clamp_min(1)[:, None]
        highest = maps.masked_fill(outside, float("-inf")).amax(dim=(2, 3))
        highest = highest.masked_fill(~where.any(dim=2).any(dim=1)[:, None], 0.0)
        scores = self.channel(maps.sum(dim=(2, 3)) / counts) + self.channel(highest)
        maps = maps * scores.sigmoid()[:, :, None, None]
        described = torch.stack([maps.amax(dim=1), maps.mean(dim=1)], dim=1)
        gated: Tensor = maps * self.pixel(described).sigmoid()
        return gated


@dataclass(eq=False, repr=False)
class RefinedFeaturesLoss(LossModule):
    """:func:`refined_features_loss` of both maps behind channel and pixel gates.

    The student's gates and the 1x1 convolution behind them are trained with the student. The
    teacher's gates keep their random weights: were they trained, gates that close would agree best.

    Args:
        reduction: reduction of the channels between the two layers of the channels' gates.
        refine_teacher: whether the teacher's map goes through gates too.
    """

    student_channels: InitVar[int]
    teacher_channels: InitVar[int]
    reduction: int = 16
    refine_teacher: bool = True

    needs: ClassVar = "features"
    same_channels: ClassVar = False

    def __post_init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__post_init__()
        check_sizes(reduction=self.reduction)
        self.gates = AttentionGates(student_channels, self.reduction)
        self.connector = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.teacher_gates = AttentionGates(teacher_channels, self.reduction)
        self.teacher_gates.requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps (B, D_S, H, W) and (B, D_T, H, W) -> scalar."""
        student, teacher = prepare_pair(student, teacher, same_channels=False)
        where = valid_pixels(valid, student)
        with without_autocast(student):
            student = self.connector(self.gates(student, where))
            teacher = self.teacher_gates(teacher, where) if self.refine_teacher else teacher
        return refined_features_loss(student, teacher, valid=where)


LOSS = RefinedFeaturesLoss
