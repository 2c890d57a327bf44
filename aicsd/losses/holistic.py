"""Holistic distillation: a critic of whole label maps (Liu et al., SKD, arXiv 1903.04197)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.losses._checks import check_sizes, match_valid, prepare_pair, without_autocast
from aicsd.losses._module import LossModule

SLOPE = 0.2
NORM_FLOOR = 1e-12


def holistic_loss(
    judged: Tensor, student: Tensor, teacher: Tensor, seen: Tensor | None = None
) -> Tensor:
    """mean_b -D(S_b) + max(0, 1 - D(T_b)) + max(0, 1 + D(S_b)): what student and critic lose.

    Args:
        judged: (B,) scores of the student's (B, C, H, W) logits by a critic without gradients: the
            part that teaches the student.
        student: (B,) the same scores of logits without gradients: the part that teaches the critic.
        teacher: (B,) scores of the teacher's logits.
        seen: (B,) bool; an image of padding (False) counts as 0. None: all count.

    Returns:
        Unweighted scalar. It is a game: neither part alone has to fall.
    """
    lost = F.relu(1 - teacher) + F.relu(1 + student) - judged
    return lost.mean() if seen is None else lost.masked_fill(~seen, 0.0).mean()


class SpectralConv(nn.Module):
    """3x3 convolution with stride 2 whose kernel, as a matrix, has norm 1 (arXiv 1802.05957).

    The norm comes from one step of the power iteration, which continues the last: its vector is a
    buffer.
    """

    vector: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("vector", F.normalize(torch.randn(out_channels), dim=0))

    def kernel(self) -> Tensor:
        """The normalised kernel; in training, the vector moves on."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(matrix.T @ self.vector, dim=0, eps=NORM_FLOOR)
            left = F.normalize(matrix @ right, dim=0, eps=NORM_FLOOR)
            if self.training:
                self.vector.copy_(left)
        return self.weight / (left @ matrix @ right).clamp_min(NORM_FLOOR)


class Critic(nn.Module):
    """One score for a whole map: three strided convolutions, mean over the map, linear.

    Args:
        classes: channels of the maps.
        width: channels of the first convolution; doubled by each of the others.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = (classes, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(SpectralConv(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Scores of the same maps (B, C, H, W) and of others, all (B,).

        Returns:
            Of the first map without gradients for the critic; then of every map detached.
        """
        parameters = []
        for layer in self.layers:
            assert isinstance(layer, SpectralConv)
            parameters.append((layer.kernel(), layer.bias))
        weight = self.head.weight
        scores = _scores(torch.cat([each.detach() for each in maps]), parameters, weight)
        frozen = [(kernel.detach(), bias.detach()) for kernel, bias in parameters]
        judged = _scores(maps[0], frozen, weight.detach())
        return judged, *torch.split(scores, [len(each) for each in maps])


def _scores(maps: Tensor, layers: Sequence[tuple[Tensor, Tensor]], head: Tensor) -> Tensor:
    for kernel, bias in layers:
        maps = F.leaky_relu(F.conv2d(maps, kernel, bias, stride=2, padding=1), SLOPE)
    return F.linear(maps.mean(dim=(2, 3)), head)[:, 0]


@dataclass(eq=False, repr=False)
class HolisticLoss(LossModule):
    """:func:`holistic_loss` of a critic of the class probabilities, trained with the student.

    One backward pass and one optimizer serve both: the student's part sees the critic's weights
    without gradients, the critic's part the logits without.

    Args:
        width: channels of the critic's first convolution.

    Raises:
        UserError: a width below 1, or maps (B, C, H, W) that differ in shape.
    """

    student_channels: InitVar[int]
    width: int = 32

    needs: ClassVar = "probabilities"

    def __post_init__(self, student_channels: int) -> None:
        super().__post_init__()
        check_sizes(width=self.width)
        self.critic = Critic(student_channels, self.width)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        student, teacher = prepare_pair(student, teacher)
        where = match_valid(valid, student)
        pair = [maps.softmax(dim=1) for maps in (student, teacher)]
        if where is not None:
            pair = [maps.masked_fill(~where[:, None], 0.0) for maps in pair]
        with without_autocast(student):
            judged, ours, theirs = self.critic(pair)
        seen = None if where is None else where.flatten(1).any(dim=1)
        return holistic_loss(judged, ours, theirs, seen)


LOSS = HolisticLoss
