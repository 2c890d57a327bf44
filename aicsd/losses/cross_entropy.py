"""Cross entropy on the labelled pixels, with class weights and label smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import check_smoothing, match_mask, safe_precision, to_safe_precision
from aicsd.losses._class_weights import ClassWeightedLoss, total_weight, weights_like
from aicsd.losses._numerics import Numerics, check_numerics
from aicsd.losses._pixel_terms import PixelTerms
from aicsd.losses._ranks import ranks, shared_count
from aicsd.types import IGNORE_INDEX


def cross_entropy_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Sequence[float] | Tensor | None = None,
    label_smoothing: float = 0.0,
    numerics: Numerics = "described",
) -> Tensor:
    """-w_y log softmax(z)[y], y the label, divided by the w_y of all labelled pixels.

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``. At another size it is
            taken to (H, W) by nearest pixel: that is the term at native resolution.
        ignore_index: id of unlabelled pixels; padding carries it too.
        class_weights: w, one number for each class; None: all 1.
        label_smoothing: e in [0, 1): a label is 1 - e of its own class and e / C of every class
            (Szegedy et al., arXiv 1512.00567).
        numerics: ``released`` divides the mean once more by B, as the released code does: every
            published weight of another term is relative to that.

    Returns:
        Unweighted scalar >= 0; 0 (with zero gradient) if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together, another number of weights than of classes,
            or a bad option.
    """
    check_numerics(numerics)
    check_smoothing(label_smoothing)
    mask = match_mask(mask, logits)
    if class_weights is None and label_smoothing == 0:
        entropy, _ = PixelTerms.apply(
            logits, mask, ignore_index, None, None, 1.0, safe_precision(logits)
        )
        mean = mean_over_labelled(entropy, mask, ignore_index)
    else:
        mean = _smoothed(logits, mask, ignore_index, class_weights, label_smoothing)
    return mean / (logits.shape[0] * ranks()) if numerics == "released" else mean


def _smoothed(
    logits: Tensor,
    mask: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | Tensor | None,
    label_smoothing: float,
) -> Tensor:
    scores = to_safe_precision(logits)
    weights = weights_like(class_weights, scores)
    entropy = F.cross_entropy(
        scores,
        mask.long(),
        weights,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return entropy / total_weight(weights, mask, ignore_index, scores.dtype)


def mean_over_labelled(entropy: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """The sum of the entropy over the pixels -> its mean; 0 if there is no label."""
    return entropy / shared_count((mask != ignore_index).sum())


@dataclass(eq=False, repr=False)
class CrossEntropyLoss(ClassWeightedLoss):
    """:func:`cross_entropy_loss` with its settings kept.

    ``class_weights`` may also be ``balanced``, ``sqrt_balanced`` or ``log_balanced``, with
    ``class_pixels``.
    """

    ignore_index: int = IGNORE_INDEX
    label_smoothing: float = 0.0
    numerics: Numerics = "described"

    needs: ClassVar = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self.label_smoothing)
        check_numerics(self.numerics)

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return cross_entropy_loss(student, mask, **self.settings)


LOSS = CrossEntropyLoss
