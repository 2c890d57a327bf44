"""Vectors of length 1, which losses compare by their angles."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

NORM_FLOOR = 1e-6
"""Least norm to divide by: the direction of a shorter vector is noise."""


def directions(vectors: Tensor, dim: int) -> Tensor:
    """The vectors along ``dim``, of length 1; shorter ones than :data:`NORM_FLOOR` stay below."""
    return F.normalize(vectors, dim=dim, eps=NORM_FLOOR)


def pixel_directions(maps: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H W, D), of length 1."""
    return directions(maps.flatten(2), dim=1).transpose(1, 2)
