"""Lovász-softmax on the labels (Berman et al., CVPR 2018, arXiv 1705.08790)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import match_mask, to_safe_precision
from aicsd.losses._module import LossModule
from aicsd.types import IGNORE_INDEX


def lovasz_loss(
    logits: Tensor, mask: Tensor, *, per_image: bool = False, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Surrogate of 1 - mean IoU: the Lovász extension of the Jaccard loss of every class.

    Of class c, with errors e_m = |y_c(m) - p_c(m)| at the labelled pixels in falling order,
    sum_m e_m (J_m - J_(m-1)), where J_m is the Jaccard loss 1 - IoU when the first m pixels are
    wrong; then the mean over the classes that have a labelled pixel.

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        per_image: compute it for each image, and take the mean; otherwise over all pixels of the
            batch, those of this process.
        ignore_index: id of unlabelled pixels.

    Returns:
        Unweighted scalar in [0, 1]; 0 if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together.
    """
    mask = match_mask(mask, logits).long()
    p = to_safe_precision(logits).softmax(dim=1).flatten(2)  # B C N
    labels = mask.flatten(1)  # B N
    if not per_image:
        p, labels = p.movedim(1, 0).flatten(1)[None], labels.flatten()[None]
    labelled = labels != ignore_index
    truth = F.one_hot(labels.masked_fill(~labelled, 0), p.shape[1]).movedim(2, 1)
    truth = truth * labelled[:, None]
    errors = (truth - p).abs() * labelled[:, None]
    # an unlabelled pixel has no error, and comes after all others: it adds nothing to the sum
    order = errors.detach().masked_fill(~labelled[:, None], -1.0).argsort(dim=2, descending=True)
    errors, truth = errors.gather(2, order), truth.gather(2, order)
    total = truth.sum(dim=2, keepdim=True)
    intersection = total - truth.cumsum(dim=2)
    union = total + (1 - truth).cumsum(dim=2)
    jaccard = 1 - intersection / union
    steps = torch.cat([jaccard[..., :1], jaccard.diff(dim=2)], dim=2)
    present = total[..., 0] > 0
    losses = (errors * steps).sum(dim=2) * present
    return (losses.sum(dim=1) / present.sum(dim=1).clamp_min(1)).mean()


@dataclass(eq=False, repr=False)
class LovaszLoss(LossModule):
    """:func:`lovasz_loss` with its settings kept."""

    per_image: bool = False
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "labels"

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return lovasz_loss(student, mask, **self.settings)


LOSS = LovaszLoss
