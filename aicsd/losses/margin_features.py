"""Margin ReLU and partial L2 distance of features (Heo et al., Overhaul, arXiv 1904.01866)."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aicsd.losses._checks import match_valid, prepare_pair, valid_pixels
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import mean_over_ranks, ranks, shared_count

RARE = 1e-3
"""Share of negative values below which their mean is not computed."""
DEVIATION_FLOOR = 1e-6


def margin_features_loss(
    student: Tensor, teacher: Tensor, margin: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """sum (f_S - t)^2 [f_S > t or t > 0] / sum t^2 with t = max(f_T, margin) by channel.

    Where the teacher's ReLU gives 0, the student only has to stay below the margin.

    Args:
        student: (B, D, H, W) features before a ReLU; the only input that gets a gradient.
        teacher: (B, D, H, W) features before a ReLU.
        margin: (D,), 0 or below.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where the student agrees, and where nothing is valid.

    Raises:
        UserError: shapes that differ.
    """
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student)
    target = torch.maximum(teacher, margin.to(teacher.dtype)[:, None, None])
    counts = (student > target) | (target > 0)
    energy = target.square()
    if where is not None:
        counts = counts & where[:, None]
        energy = energy.masked_fill(~where[:, None], 0.0)
    error = (student - target).masked_fill(~counts, 0.0).square().sum()
    return error / shared_count(energy.sum(), torch.finfo(energy.dtype).tiny)


def normal_margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of normal x; -3 deviations where hardly any x is below 0. All (D,)."""
    deviation = deviation.clamp_min(DEVIATION_FLOOR)
    z = mean / deviation
    below = 0.5 * torch.erfc(z / math.sqrt(2))
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    expected = mean - deviation * density / below.clamp_min(RARE)
    return torch.where(below > RARE, expected, -3 * deviation).clamp_max(0.0)


@dataclass(eq=False, repr=False)
class MarginFeaturesLoss(LossModule):
    """:func:`margin_features_loss` with the margins of the teacher's channels.

    They come from mean and standard deviation of each channel, averaged over all batches that the
    loss has seen in training (of all processes), which is what the scale and shift of a batch norm
    say where one makes the map. They belong to the state of the loss.
    """

    teacher_channels: InitVar[int]

    needs: ClassVar = "features"

    def __post_init__(self, teacher_channels: int) -> None:
        super().__post_init__()
        self.register_buffer("moments", torch.zeros(2, teacher_channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two maps (B, D, H, W) -> scalar."""
        student, teacher = prepare_pair(student, teacher)
        where = match_valid(valid, student)
        if self.training:
            self.observe(teacher, where)
        mean, square = self.get_buffer("moments")
        margin = normal_margin(mean, (square - mean.square()).clamp_min(0.0).sqrt())
        return margin_features_loss(student, teacher, margin, valid=where)

    def observe(self, teacher: Tensor, where: Tensor | None) -> None:
        """Take the statistics of a batch (B, D, H, W) into the averages."""
        where = valid_pixels(where, teacher)
        inside = teacher.masked_fill(~where[:, None], 0.0)
        count = where.sum().to(teacher.dtype).expand(teacher.shape[1])
        sums = torch.stack([inside.sum(dim=(0, 2, 3)), inside.square().sum(dim=(0, 2, 3)), count])
        sums = mean_over_ranks(sums)
        found = sums[:2] / sums[2].clamp_min(1 / ranks())
        seen, moments = self.get_buffer("seen"), self.get_buffer("moments")
        seen += sums[2, 0] > 0
        share = (sums[2, 0] > 0) / seen.clamp_min(1)
        moments += share * (found.to(moments.dtype) - moments)


LOSS = MarginFeaturesLoss
