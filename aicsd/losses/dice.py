"""Soft Dice on the labels (Milletari et al., V-Net, arXiv 1606.04797; linear denominator)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import match_mask, to_safe_precision
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import mean_over_ranks
from aicsd.types import IGNORE_INDEX


def dice_loss(logits: Tensor, mask: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """1 - mean over the classes of 2 sum_m p_c y_c / (sum_m p_c + sum_m y_c).

    The sums run over all labelled pixels m of the batch (of all processes), the mean over the
    classes that have one of them; p is the softmax over the classes and y the label as 0 or 1.

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        ignore_index: id of unlabelled pixels.

    Returns:
        Unweighted scalar in [0, 1]; 0 if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together.
    """
    mask = match_mask(mask, logits).long()
    labelled = mask != ignore_index
    p = to_safe_precision(logits).softmax(dim=1) * labelled[:, None]
    labels = F.one_hot(mask.masked_fill(~labelled, 0), logits.shape[1]).movedim(3, 1)
    labels = labels * labelled[:, None]
    sums = torch.stack([(part * 1.0).sum(dim=(0, 2, 3)) for part in (p * labels, p, labels)])
    both, predicted, true = mean_over_ranks(sums.to(p.dtype))
    present = true > 0
    scores = 2 * both / (predicted + true).clamp_min(torch.finfo(p.dtype).tiny)
    lost: Tensor = ((1 - scores) * present).sum() / present.sum().clamp_min(1)
    return lost


@dataclass(eq=False, repr=False)
class DiceLoss(LossModule):
    """:func:`dice_loss` with its settings kept."""

    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "labels"

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return dice_loss(student, mask, **self.settings)


LOSS = DiceLoss
