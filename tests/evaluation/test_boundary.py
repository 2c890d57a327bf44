"""Boundary IoU against distances by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aicsd.data import Sample, SegDataset
from aicsd.data.protocol import Classes
from aicsd.evaluation import evaluate
from aicsd.evaluation.boundary import boundary_counts, boundary_region
from aicsd.models import InputSpec, Segmenter


def slow_region(area: np.ndarray, unlabelled: np.ndarray, distance: int) -> np.ndarray:
    """Labelled pixels of ``area`` near a labelled pixel outside of it, or near the border."""
    region = np.zeros_like(area)
    height, width = area.shape
    for row, column in np.argwhere(area & ~unlabelled):
        for y in range(row - distance, row + distance + 1):
            for x in range(column - distance, column + distance + 1):
                beyond = not (0 <= y < height and 0 <= x < width)
                if beyond or not (area[y, x] or unlabelled[y, x]):
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
        area, unlabelled = blobs(seed) == 1, blobs(seed + 9) == 2
        found = boundary_region(area, unlabelled, distance)
        assert np.array_equal(found, slow_region(area, unlabelled, distance))
        nowhere = np.zeros_like(area)
        found = boundary_region(area, nowhere, distance)
        assert np.array_equal(found, slow_region(area, nowhere, distance))


def test_counts_against_brute_force_with_unlabelled_pixels() -> None:
    predicted, mask = blobs(1, 60, 70), blobs(2, 60, 70)
    mask[3:7, 5:12] = 255
    distance = max(1, round(0.02 * math.hypot(*mask.shape)))
    unlabelled = mask == 255
    for class_id, (common, either) in enumerate(boundary_counts(predicted, mask, 4).T):
        ours = slow_region(predicted == class_id, unlabelled, distance)
        theirs = slow_region(mask == class_id, unlabelled, distance)
        assert common == (ours & theirs).sum()
        assert either == (ours | theirs).sum()
    assert not boundary_counts(predicted, np.full_like(mask, 255), 4).any()


def test_what_is_predicted_where_nothing_is_labelled_does_not_matter() -> None:
    mask = blobs(2, 60, 70)
    mask[20:31, 10:40] = 255
    for seed in range(3):
        predicted = np.where(mask == 255, blobs(seed, 60, 70), mask)
        common, either = boundary_counts(predicted, mask, 3)
        assert np.array_equal(common, either)
        assert (common > 0).all()


def test_a_band_of_unlabelled_pixels_does_not_hide_a_wrong_contour() -> None:
    """VOC has such a band along its objects: 15 pixels too many are wrong with and without it."""
    rows, columns = np.mgrid[:375, :500]
    radius = np.hypot(rows - 187, columns - 250)
    mask = (radius < 100).astype(np.uint8)
    banded = np.where(abs(radius - 100) < 2.5, 255, mask).astype(np.uint8)
    for truth in (mask, banded):
        for grow, least, most in ((0, 1.0, 1.0), (15, 0.0, 0.05)):
            predicted = (radius < 100 + grow).astype(np.uint8)
            common, either = boundary_counts(predicted, truth, 2)
            assert least <= common[1] / either[1] <= most


def test_in_the_metrics() -> None:
    """One shifted square: exact boundary, shifted by one pixel, absent class."""
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1

    class Data(SegDataset):
        classes = Classes(("ground", "square", "absent"), ((0, 0, 0), (9, 9, 9), (1, 1, 1)))

        def __init__(self) -> None:
            self.names = ["0"]

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

    model = Segmenter(Bright(), Data.classes, InputSpec((0.5,) * 3, (0.5,) * 3))
    metrics = evaluate(model, Data(), boundary=True)
    # rings of one pixel: 36 each; 9 + 9 pixels of the two horizontal sides are common
    ring = {(y, x) for y in range(5, 15) for x in range(5, 15)} - {
        (y, x) for y in range(6, 14) for x in range(6, 14)
    }
    moved = {(y, x + 1) for y, x in ring}
    expected = len(ring & moved) / len(ring | moved)
    scores = metrics.per_class_boundary_iou
    assert scores is not None
    assert scores["square"] == pytest.approx(expected)
    assert math.isnan(scores["absent"])
    assert metrics.boundary_iou == pytest.approx((scores["ground"] + expected) / 2)
    assert evaluate(model, Data()).boundary_iou is None
