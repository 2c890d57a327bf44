"""Softened labels in place of a teacher: the control that a distillation has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import check_smoothing, check_temperature, match_mask, to_safe_precision
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count
from aicsd.types import IGNORE_INDEX

MAX_SIGMA = 1000.0


def label_soft_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    sigma: float = 1.0,
    label_smoothing: float = 0.1,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """T^2 KL(q || p_S) over the classes, mean over the labelled pixels, p_S = softmax(z / T).

    q is the label, blurred by a Gaussian over the labelled pixels around (uncertain at borders),
    then mixed with the uniform distribution by ``label_smoothing`` (uncertain everywhere). A gain
    of :func:`pixel_kd_loss` beyond this comes from the teacher.

    Args:
        logits: (B, C, H, W).
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        sigma: standard deviation of the Gaussian in pixels of the logits; 0 does not blur.
        label_smoothing: e in [0, 1): e / C of every class.
        temperature: T > 0.
        ignore_index: id of unlabelled pixels.

    Returns:
        Unweighted scalar >= 0; 0 if no pixel is labelled.

    Raises:
        UserError: shapes that do not belong together, or a bad option.
    """
    check_temperature(temperature)
    check_sigma(sigma)
    check_smoothing(label_smoothing)
    mask = match_mask(mask, logits).long()
    scores = to_safe_precision(logits)
    labelled = mask != ignore_index
    q = soft_labels(mask, labelled, scores.shape[1], sigma).to(scores.dtype)
    q = (1 - label_smoothing) * q + label_smoothing / scores.shape[1]
    log_p = (scores / temperature).log_softmax(dim=1)
    divergence = (torch.xlogy(q, q) - q * log_p).sum(dim=1)
    total = divergence.masked_fill(~labelled, 0.0).sum()
    return temperature**2 * total / shared_count(labelled.sum())


def soft_labels(mask: Tensor, labelled: Tensor, classes: int, sigma: float) -> Tensor:
    """(B, C, H, W) float64 or float32: shares of the classes around every pixel, which sum to 1.

    Args:
        mask: (B, H, W) class ids; any number where ``labelled`` is False.
        labelled: (B, H, W) bool.
        classes: C.
        sigma: standard deviation of the Gaussian window, in pixels.
    """
    precision = torch.float32 if mask.device.type == "mps" else torch.float64
    one_hot = F.one_hot(mask.masked_fill(~labelled, 0), classes).movedim(3, 1)
    shares = (one_hot * labelled[:, None]).to(precision)
    if sigma > 0:
        radius = min(math.ceil(4 * sigma), max(mask.shape[1:]) - 1)
        steps = torch.arange(-radius, radius + 1, dtype=precision, device=mask.device)
        window = torch.exp(-0.5 * (steps / sigma) ** 2)
        maps = shares.flatten(0, 1)[:, None]
        maps = F.conv2d(maps, window.view(1, 1, -1, 1), padding=(radius, 0))
        maps = F.conv2d(maps, window.view(1, 1, 1, -1), padding=(0, radius))
        shares = maps.view(shares.shape)
    return shares / shares.sum(dim=1, keepdim=True).clamp_min(torch.finfo(precision).tiny)


def check_sigma(sigma: float) -> None:
    """Refuse a width that is none.

    Raises:
        UserError: a number below 0 or above what an image can hold.
    """
    if not 0 <= sigma <= MAX_SIGMA:
        raise UserError(f"sigma is {sigma}; it is a number of pixels from 0 to {MAX_SIGMA:g}")


@dataclass(eq=False, repr=False)
class LabelSoftLoss(LossModule):
    """:func:`label_soft_loss` with its settings kept."""

    sigma: float = 1.0
    label_smoothing: float = 0.1
    temperature: float = 1.0
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "labels"
    resolution: ClassVar = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_sigma(self.sigma)
        check_smoothing(self.label_smoothing)

    def forward(self, student: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) logits and (B, H, W) labels -> scalar."""
        return label_soft_loss(student, mask, **self.settings)


LOSS = LabelSoftLoss
