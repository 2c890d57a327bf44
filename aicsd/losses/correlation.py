"""Inter-channel correlation (Liu et al., ICKD, ICCV 2021, arXiv 2202.03680), on the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import match_valid, prepare_pair, without_autocast
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics


def correlation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    numerics: Numerics = "described",
    valid: Tensor | None = None,
) -> Tensor:
    """Squared distance of the two correlation matrices: L_CC = 1/(B C) sum_b ||G^S_b - G^T_b||^2_F.

    G_b = f f^T, (C, C), f the (C, H W) logits of image b without a softmax; then each row is
    divided by its L2 norm. The paper compares features, the student's after a learned 1x1
    convolution; the AICSD code, and this, the logits, whose channels are the same classes in both
    networks. The paper's cut of the map into a grid is not in the AICSD code, and not here.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        numerics: both compute the formula above. ``released`` ignores ``valid``, since
            the released code never masks padding. (That code runs at the input's resolution: a
            recipe sets it by ``resolution: input``; and it computes the term without ever
            adding it to the loss.)
        valid: (B, H', W') bool; padding (False) takes no part in the sums over the pixels.

    Returns:
        Unweighted scalar >= 0; 0 where the matrices agree. At most 4.

    Raises:
        UserError: shapes that differ, or unknown numerics.
    """
    check_numerics(numerics)
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student) if numerics == "described" else None
    ours, target = (_correlations(maps, where) for maps in (student, teacher))
    batch, channels = student.shape[:2]
    return (ours - target).square().sum() / (batch * channels)


def _correlations(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(B, C, H, W) -> (B, C, C), rows of length 1."""
    if valid is not None:
        maps = maps.masked_fill(~valid[:, None], 0.0)
    flat = maps.flatten(2)
    with without_autocast(flat):
        return F.normalize(flat @ flat.transpose(1, 2), dim=2)


@dataclass(eq=False, repr=False)
class CorrelationLoss(LossModule):
    """:func:`correlation_loss` with its settings kept."""

    numerics: Numerics = "described"

    needs: ClassVar = "features"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numerics(self.numerics)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return correlation_loss(student, teacher, valid=valid, **self.settings)


LOSS = CorrelationLoss
