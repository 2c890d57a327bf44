"""Focal loss at every labelled pixel (Lin et al., arXiv 1708.02002)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import match_mask, to_safe_precision
from aicsd.losses._class_weights import ClassWeightedLoss, total_weight, weights_like
from aicsd.losses._numerics import Numerics, check_numerics
from aicsd.losses._ranks import mean_over_ranks, ranks
from aicsd.losses.cross_entropy import cross_entropy_loss
from aicsd.types import IGNORE_INDEX

LEAST_ERROR = 1e-12
"""Below this 1 - p a pixel pulls no longer: with gamma below 1 its gradient would be infinite."""
RELEASED_ALPHA = 0.5


def focal_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    gamma: float = 2.0,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Sequence[float] | Tensor | None = None,
    numerics: Numerics = "described",
) -> Tensor:
    """-w_y (1 - p_y)^gamma log p_y, y the label, divided by the w_y of all labelled pixels.

    (The paper divides by the number of objects, which a mask does not have.)

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        gamma: 0 or above; 0 is the cross entropy.
        ignore_index: id of unlabelled pixels.
        class_weights: w, the alpha of the paper, one number for each class; None: all 1.
        numerics: ``released`` is the released AICSD code instead, which takes the mean m of the
            (weighted) cross entropy over the *batch* for the one of a pixel:
            0.5 (1 - exp(-m))^gamma m / B.

    Returns:
        Unweighted scalar >= 0; 0 if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together, another number of weights than of classes,
            or a bad option.
    """
    check_numerics(numerics)
    check_gamma(gamma)
    if numerics == "released":
        mean = cross_entropy_loss(
            logits, mask, ignore_index=ignore_index, class_weights=class_weights
        )
        mean = mean_over_ranks(mean)
        focus = (1 - torch.exp(-mean)).clamp_min(LEAST_ERROR) ** gamma
        return RELEASED_ALPHA * focus * mean / (logits.shape[0] * ranks())
    mask = match_mask(mask, logits).long()
    scores = to_safe_precision(logits)
    entropy = F.cross_entropy(scores, mask, ignore_index=ignore_index, reduction="none")
    error = -torch.expm1(-entropy)  # 1 - p of the label
    terms = error.clamp_min(LEAST_ERROR) ** gamma * entropy
    weights = weights_like(class_weights, scores)
    if weights is not None:
        terms = terms * weights[mask.masked_fill(mask == ignore_index, 0)]
    terms = terms.masked_fill(mask == ignore_index, 0.0)
    return terms.sum() / total_weight(weights, mask, ignore_index, scores.dtype)


def check_gamma(gamma: float) -> None:
    """Refuse an exponent that would weigh easy pixels more.

    Raises:
        UserError: a negative number.
    """
    if not gamma >= 0:
        raise UserError(f"gamma is {gamma}; it is a number of 0 or above")


@dataclass(eq=False, repr=False)
class FocalLoss(ClassWeightedLoss):
    """:func:`focal_loss` with its settings kept.

    ``class_weights`` may also be ``balanced``, ``sqrt_balanced`` or ``log_balanced``, with
    ``class_pixels``.
    """

    gamma: float = 2.0
    ignore_index: int = IGNORE_INDEX
    numerics: Numerics = "described"

    needs: ClassVar = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gamma(self.gamma)
        check_numerics(self.numerics)

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return focal_loss(student, mask, **self.settings)


LOSS = FocalLoss
