"""Distillation of features (Romero et al., FitNets, arXiv 1412.6550), normalised over channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import match_valid, prepare_pair
from aicsd.losses._directions import directions
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count
from aicsd.types import LOGITS

Maps = Tensor | Mapping[str, Tensor]


def feature_kd_loss(
    student: Maps, teacher: Maps, *, normalize: bool = True, valid: Tensor | None = None
) -> Tensor:
    """Squared distance of the features at every pixel, mean over the pixels.

    With u = f / ||f|| over the channels, ||u_S - u_T||^2 = 2 - 2 cos(f_S, f_T) in [0, 4]; without
    the normalisation, the mean over the channels of (f_S - f_T)^2, as in FitNets. Where the numbers
    of channels differ, a recipe needs an adapter for the student's map (``adapter: conv1x1``).

    Args:
        student: (B, D, H, W) features; or several maps by name, whose losses are averaged. The only
            input that gets a gradient.
        teacher: (B, D, H, W), or as many maps of the same names. If one of them is ``logits``
            (B, C, H', W'), it is not compared: each pixel of the others is weighted by the
            teacher's confidence max_c softmax(z_T), at the size of the features.
        normalize: compare directions and not lengths. On by default: lengths differ between
            networks by orders of magnitude, and so would the weight of the term.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where the features agree, and where nothing is valid.

    Raises:
        UserError: shapes that differ, maps of different names, or logits alone.
    """
    ours, theirs = _named(student), _named(teacher)
    if ours.keys() != theirs.keys():
        raise UserError(f"maps of the student are {list(ours)}, of the teacher {list(theirs)}")
    compared = [name for name in ours if name != LOGITS or len(ours) == 1]
    confidence = theirs[LOGITS] if len(compared) < len(ours) else None
    parts = [_distance(ours[n], theirs[n], normalize, confidence, valid) for n in compared]
    return torch.stack(parts).mean()


def _named(maps: Maps) -> Mapping[str, Tensor]:
    return maps if isinstance(maps, Mapping) else {"": maps}


def _distance(
    student: Tensor,
    teacher: Tensor,
    normalize: bool,
    logits: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student)
    if normalize:
        student, teacher = (directions(maps, dim=1) for maps in (student, teacher))
    squares = (student - teacher).square()
    by_pixel = squares.sum(dim=1) if normalize else squares.mean(dim=1)
    weights = torch.ones_like(by_pixel)
    if logits is not None:
        sure = logits.detach().to(by_pixel.dtype).softmax(dim=1).amax(dim=1, keepdim=True)
        weights = F.interpolate(sure, by_pixel.shape[1:], mode="bilinear", align_corners=False)[
            :, 0
        ]
    if where is not None:
        by_pixel, weights = (each.masked_fill(~where, 0.0) for each in (by_pixel, weights))
    return (weights * by_pixel).sum() / shared_count(weights.sum(), torch.finfo(weights.dtype).tiny)


@dataclass(eq=False, repr=False)
class FeatureKDLoss(LossModule):
    """:func:`feature_kd_loss` with its settings kept."""

    normalize: bool = True

    needs: ClassVar = "features"

    def forward(self, student: Maps, teacher: Maps, valid: Tensor | None = None) -> Tensor:
        """Two maps (B, D, H, W), or mappings of them by name -> scalar."""
        return feature_kd_loss(student, teacher, valid=valid, **self.settings)


LOSS = FeatureKDLoss
