"""Boundary IoU against distances by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aicsd.data import Sample
from aicsd.data.base import Classes
from aicsd.evaluation import evaluate
from aicsd.evaluation.boundary import boundary_counts, boundary_region
from aicsd.models import Segmenter


def slow_region(area: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of ``area`` with a pixel outside, or beyond the image, within ``distance`` steps."""
    region = np.zeros_like(area)
    height, width = area.shape
    for row, column in np.argwhere(area):
        for y in range(row - distance, row + distance + 1):
            for x in range(column - distance, column + distance + 1):
                if not (0 <= y < height and 0 <= x < width) or not area[y, x]:
                    region[row, column] = True
    return region


def blobs(seed: int, height: int = 24, width: int = 31) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 3, (6, 7)), np.ones((4, 5), int))[:height, :width].astype(
        np.uint8
    )


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_region_against_brute_force(distance: int) -> None:
    for seed in range(3):
        area = blobs(seed) == 1
        assert np.array_equal(boundary_region(area, distance), slow_region(area, distance))


def test_counts_against_brute_force_with_unlabelled_pixels() -> None:
    predicted, mask = blobs(1, 60, 70), blobs(2, 60, 70)
    mask[3:7, 5:12] = 255
    distance = max(1, round(0.02 * math.hypot(*mask.shape)))
    seen = predicted.copy()
    seen[mask == 255] = 255
    for class_id, (common, either) in enumerate(boundary_counts(predicted, mask, 4).T):
        ours = slow_region(seen == class_id, distance)
        theirs = slow_region(mask == class_id, distance)
        assert common == (ours & theirs).sum()
        assert either == (ours | theirs).sum()


def test_in_the_metrics() -> None:
    """One shifted square: exact boundary, shifted by one pixel, absent class."""
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1

    class Data:
        classes = Classes(("ground", "square", "absent"), ((0, 0, 0), (9, 9, 9), (1, 1, 1)))
        names = ("0",)

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Sample:
            image = np.zeros((20, 20, 3), np.uint8)
            image[5:15, 6:16] = 255
            return Sample(image, mask)

    class Bright(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            grey = image.mean(dim=1, keepdim=True)
            return torch.cat([-grey, grey, grey * 0 - 9], dim=1)

    model = Segmenter(Bright(), Data.classes, (0.5,) * 3, (0.5,) * 3)
    metrics = evaluate(model, Data(), boundary=True)
    # rings of one pixel: 36 each; 9 + 9 pixels of the two horizontal sides are common
    ring = {(y, x) for y in range(5, 15) for x in range(5, 15)} - {
        (y, x) for y in range(6, 14) for x in range(6, 14)
    }
    moved = {(y, x + 1) for y, x in ring}
    expected = len(ring & moved) / len(ring | moved)
    assert metrics.per_class_boundary_iou["square"] == pytest.approx(expected)
    assert math.isnan(metrics.per_class_boundary_iou["absent"])
    assert metrics.boundary_iou == pytest.approx(
        (metrics.per_class_boundary_iou["ground"] + expected) / 2
    )
    assert evaluate(model, Data()).boundary_iou is None
