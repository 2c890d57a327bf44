"""The image's base size, and padding as the released code has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aicsd.data.augment import Padding, augment, padding_of
from aicsd.data.protocol import Classes, Sample
from aicsd.data.settings import AugmentConfig
from aicsd.types import IGNORE_INDEX

PLAIN: dict[str, Any] = {"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "blur": 0.0}


def half_and_half(height: int, width: int) -> Sample:
    """Class 0 on the left half, 1 on the right."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    return Sample(np.full((height, width, 3), 200, np.uint8), mask)


@pytest.mark.parametrize(("height", "width"), [(100, 160), (160, 100), (40, 40)])
def test_short_side_becomes_the_size_at_scale_1(height: int, width: int) -> None:
    config = AugmentConfig(crop=256, short_side=64, **PLAIN)
    crop = augment(half_and_half(height, width), np.random.default_rng(0), config)
    rows, columns = crop.valid.any(axis=1).sum(), crop.valid.any(axis=0).sum()
    scale = 64 / min(height, width)
    assert (rows, columns) == (round(height * scale), round(width * scale))


def test_short_side_0_leaves_the_size() -> None:
    crop = augment(half_and_half(40, 60), np.random.default_rng(0), AugmentConfig(crop=96, **PLAIN))
    assert crop.valid.sum() == 40 * 60


@pytest.mark.parametrize(
    ("first", "expected"),
    [("background", Padding((0, 0, 0), 0)), ("road", Padding((0, 0, 0), IGNORE_INDEX))],
)
def test_released_padding_is_black_and_labelled_background_where_there_is_one(
    first: str, expected: Padding
) -> None:
    classes = Classes((first, "car"), ((0, 0, 0), (1, 1, 1)))
    assert padding_of("released", classes) == expected
    assert padding_of("standard", classes) == Padding()
    config = AugmentConfig(crop=96, **PLAIN)
    crop = augment(half_and_half(40, 60), np.random.default_rng(0), config, expected)
    assert (crop.image[~crop.valid] == 0).all()
    assert (crop.mask[~crop.valid] == expected.class_id).all()
