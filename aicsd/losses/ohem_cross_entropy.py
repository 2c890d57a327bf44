"""Cross entropy on the hardest pixels (Shrivastava et al., OHEM, arXiv 1604.03540)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import match_mask, to_safe_precision
from aicsd.losses._class_weights import ClassWeightedLoss, total_weight, weights_like
from aicsd.types import IGNORE_INDEX


def ohem_cross_entropy_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    threshold: float = 0.7,
    keep: float = 0.25,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Cross entropy, mean over the labelled pixels whose label gets a low probability.

    These are the pixels with p[label] below ``threshold``, and at least the share ``keep`` of the
    labelled pixels of this process, those with the lowest p[label].

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        threshold: probability in [0, 1] from which a pixel is easy.
        keep: share of the labelled pixels in [0, 1] that is kept in any case; 1 keeps all.
        ignore_index: id of unlabelled pixels.
        class_weights: one number for each class; None: all 1. They weigh the mean and do not
            choose pixels.

    Returns:
        Unweighted scalar >= 0; 0 if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together, another number of weights than of classes,
            or a share outside [0, 1].
    """
    check_shares(threshold=threshold, keep=keep)
    mask = match_mask(mask, logits).long()
    scores = to_safe_precision(logits)
    entropy = F.cross_entropy(scores, mask, ignore_index=ignore_index, reduction="none")
    hard = _hard_pixels(entropy.detach(), mask != ignore_index, threshold, keep)
    weights = weights_like(class_weights, scores)
    chosen = mask.masked_fill(~hard, ignore_index)
    if weights is not None:
        entropy = entropy * weights[mask.masked_fill(~hard, 0)]
    total = total_weight(weights, chosen, ignore_index, scores.dtype)
    return entropy.masked_fill(~hard, 0.0).sum() / total


def _hard_pixels(entropy: Tensor, labelled: Tensor, threshold: float, keep: float) -> Tensor:
    """(B, H, W) bool; a probability below the threshold is an entropy above -log of it."""
    hard = entropy > (-math.log(threshold) if threshold > 0 else math.inf)
    found = entropy[labelled]
    count = math.ceil(keep * found.numel())
    if count:
        smallest = torch.kthvalue(found, found.numel() - count + 1).values
        hard = hard | (entropy >= smallest)
    return hard & labelled


def check_shares(**shares: float) -> None:
    """Refuse numbers outside [0, 1].

    Raises:
        UserError: names the option.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share}; it is a number from 0 to 1")


@dataclass(eq=False, repr=False)
class OHEMCrossEntropyLoss(ClassWeightedLoss):
    """:func:`ohem_cross_entropy_loss` with its settings kept.

    ``class_weights`` may also be ``balanced``, ``sqrt_balanced`` or ``log_balanced``, with
    ``class_pixels``.
    """

    threshold: float = 0.7
    keep: float = 0.25
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(threshold=self.threshold, keep=self.keep)

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return ohem_cross_entropy_loss(student, mask, **self.settings)


LOSS = OHEMCrossEntropyLoss
