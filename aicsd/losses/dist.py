"""Distillation of relations by correlation (Huang et al., DIST, NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aicsd.losses._checks import check_temperature, check_weights, prepare_pair, valid_pixels
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import mean_over_ranks, shared_count

NORM_FLOOR = 1e-8


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """inter (1 - mean_m r(p^S_m, p^T_m)) + intra (1 - mean_c r(p^S_c, p^T_c)), r the correlation.

    p = softmax(z / T) over the classes. The first part correlates, at every pixel m, the
    probabilities of the classes; the second, for every class c, its probabilities at all pixels of
    the batch (of all processes). A constant vector has correlation 0.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        inter: weight of the relation between the classes of a pixel, 0 or above.
        intra: weight of the relation between the pixels of a class, 0 or above.
        temperature: T > 0.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar in [0, 2 (inter + intra)]; 0 where p^S is linear in p^T, and where nothing
        is valid.

    Raises:
        UserError: shapes that differ, or a bad option.
    """
    check_temperature(temperature)
    check_weights(inter=inter, intra=intra)
    student, teacher = prepare_pair(student, teacher)
    valid = valid_pixels(valid, student)
    p, q = ((maps / temperature).softmax(dim=1) for maps in (student, teacher))
    by_pixel = (1 - _correlation(p - p.mean(1, True), q - q.mean(1, True))) * valid
    between_classes = by_pixel.sum() / shared_count(valid.sum())
    return inter * between_classes + intra * _between_pixels(p, q, valid)


def _correlation(p: Tensor, q: Tensor) -> Tensor:
    """(B, C, H, W) deviations from the mean over the classes -> (B, H, W)."""
    norms = (torch.linalg.vector_norm(maps, dim=1).clamp_min(NORM_FLOOR) for maps in (p, q))
    cosine: Tensor = (p * q).sum(dim=1) / (next(norms) * next(norms))
    return cosine


def _between_pixels(p: Tensor, q: Tensor, valid: Tensor) -> Tensor:
    """1 - mean over the classes of the correlation over all valid pixels."""
    where = valid[:, None].to(p.dtype)
    count = shared_count(valid.sum())
    centred = []
    for maps in (p, q):
        # the deviations sum to 0, so that their products have no gradient by the means
        mean = mean_over_ranks((maps.detach() * where).sum(dim=(0, 2, 3))) / count
        centred.append((maps - mean[:, None, None].to(maps.dtype)) * where)
    pairs = ((0, 1), (0, 0), (1, 1))
    sums = torch.stack([(centred[i] * centred[j]).sum(dim=(0, 2, 3)) for i, j in pairs])
    covariance, *variances = mean_over_ranks(sums)
    deviations = [variance.clamp_min(NORM_FLOOR**2).sqrt() for variance in variances]
    distance: Tensor = (1 - covariance / (deviations[0] * deviations[1])).mean()
    is_any = mean_over_ranks(where.amax()) > 0
    return distance * is_any


@dataclass(eq=False, repr=False)
class DISTLoss(LossModule):
    """:func:`dist_loss` with its settings kept."""

    inter: float = 1.0
    intra: float = 1.0
    temperature: float = 1.0

    needs: ClassVar = "probabilities"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_weights(inter=self.inter, intra=self.intra)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return dist_loss(student, teacher, valid=valid, **self.settings)


LOSS = DISTLoss
