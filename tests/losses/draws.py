"""Seeded random maps, masks and valid pixels for the tests of losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.types import IGNORE_INDEX

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda maps: maps,
    "channels_last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
    "transposed": lambda maps: maps.transpose(2, 3).contiguous().transpose(2, 3),
    "a part": lambda maps: F.pad(maps, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
}


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> Tensor:
    """Normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def draw_valid(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """(B, H, W) for maps of ``shape``; the first two pixels of every image are valid."""
    batch, _, height, width = shape
    valid = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid.flatten(1)[:, :2] = True
    return valid


def draw_mask(
    shape: tuple[int, ...], seed: int = 0, ignored: float = 0.3, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """(B, H, W) class ids for logits of ``shape``; the first pixel has a label."""
    batch, classes, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(classes, (batch, height, width), generator=generator)
    drop = torch.rand(batch, height, width, generator=generator) < ignored
    mask = mask.masked_fill(drop, ignore_index)
    mask[0, 0, 0] = 1 if ignore_index == 0 else 0
    return mask
