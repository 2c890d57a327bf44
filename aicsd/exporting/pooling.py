"""Adaptive pooling that converters take for images of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

Sides = int | None | tuple[int | None, int | None]


@contextmanager
def any_size_pooling() -> Iterator[None]:
    """Replace PyTorch's adaptive average pooling, which is exported with the bins of one size."""
    original = F.adaptive_avg_pool2d

    def pool(input: Tensor, output_size: Sides) -> Tensor:
        sides = output_size if isinstance(output_size, tuple) else (output_size, output_size)
        rows, columns = sides
        if rows is None or columns is None or rows == columns == 1:  # to one cell, it is a mean
            return original(input, output_size)
        return bin_pool(input, rows, columns)

    F.adaptive_avg_pool2d = pool
    try:
        yield
    finally:
        F.adaptive_avg_pool2d = original


def bin_pool(maps: Tensor, rows: int, columns: int) -> Tensor:
    """``adaptive_avg_pool2d`` as two matrix products.

    Bin i of n over a side of s cells covers floor(i s / n) up to ceil((i + 1) s / n).

    Args:
        maps: (B, D, h, w).
        rows: bins from top to bottom.
        columns: bins from left to right.

    Returns:
        (B, D, rows, columns).
    """
    down, right = _bins(maps.shape[2], rows, maps), _bins(maps.shape[3], columns, maps)
    return down @ maps @ right.T


def _bins(side: int, count: int, like: Tensor) -> Tensor:
    """(count, side) weights of a mean over each bin."""
    cell = torch.arange(side, device=like.device)
    number = torch.arange(count, device=like.device)[:, None]
    begin, end = number * side // count, ((number + 1) * side + count - 1) // count
    inside = ((cell >= begin) & (cell < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
