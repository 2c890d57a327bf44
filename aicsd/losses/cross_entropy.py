"""Cross entropy on the labelled pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import safe_precision
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics
from aicsd.losses._pixel_terms import PixelTerms
from aicsd.losses._ranks import ranks, shared_count
from aicsd.types import IGNORE_INDEX


def cross_entropy_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    numerics: Numerics = "described",
) -> Tensor:
    """-log softmax(z)[label], mean over the pixels whose label is not ``ignore_index``.

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``. At another size it is
            taken to (H, W) by nearest pixel: that is the term at native resolution.
        ignore_index: id of unlabelled pixels; padding carries it too.
        numerics: ``released`` divides the mean once more by B, as the published code does: every
            published weight of another term is relative to that.

    Returns:
        Unweighted scalar >= 0; 0 (with zero gradient) if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together, or unknown numerics.
    """
    check_numerics(numerics)
    mask = match_mask(mask, logits)
    entropy, _ = PixelTerms.apply(
        logits, mask, ignore_index, None, None, 1.0, safe_precision(logits)
    )
    mean = mean_over_labelled(entropy, mask, ignore_index)
    return mean / (logits.shape[0] * ranks()) if numerics == "released" else mean


def match_mask(mask: Tensor, logits: Tensor) -> Tensor:
    """(B, H', W') class ids -> (B, H, W) at the size of ``logits``, by nearest pixel."""
    if logits.dim() != 4 or mask.dim() != 3 or logits.shape[0] != mask.shape[0]:
        raise UserError(
            f"logits {tuple(logits.shape)} must be (B, C, H, W) and mask {tuple(mask.shape)} "
            "(B, H, W) with the same B"
        )
    if mask.shape[-2:] == logits.shape[-2:]:
        return mask
    return F.interpolate(mask[:, None].float(), size=logits.shape[-2:], mode="nearest")[:, 0]


def mean_over_labelled(entropy: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """The sum of the entropy over the pixels -> its mean; 0 if there is no label."""
    return entropy / shared_count((mask != ignore_index).sum())


@dataclass(eq=False, repr=False)
class CrossEntropyLoss(LossModule):
    """:func:`cross_entropy_loss` with its settings kept."""

    ignore_index: int = IGNORE_INDEX
    numerics: Numerics = "described"

    needs: ClassVar = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numerics(self.numerics)

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return cross_entropy_loss(student, mask, **self.settings)


LOSS = CrossEntropyLoss
