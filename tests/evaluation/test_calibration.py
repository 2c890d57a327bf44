"""Calibration: bins by hand, a plain loop, and the same class ids as without it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_evaluate import Scenes, brightest
from torch import Tensor

from aicsd.data import Sample
from aicsd.evaluation import InferenceConfig, evaluate
from aicsd.evaluation.calibration import add_calibration, calibration_counts
from aicsd.models import Segmenter
from aicsd.types import IGNORE_INDEX

TTA = InferenceConfig(scales=(0.75, 1.0), flip=True)
WINDOWS = InferenceConfig(window=32)


def loop(model: Segmenter, dataset: Scenes) -> tuple[float, float]:
    """Mean confidence and calibration error of single passes, pixel by pixel."""
    bins: dict[int, list[tuple[bool, float]]] = {}
    for index in range(len(dataset)):
        sample = dataset.read(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(
                model.eval()(image).logits,
                sample.mask.shape,
                mode="bilinear",
                align_corners=model.align_corners,
            )
        sures, ids = logits.softmax(dim=1)[0].amax(dim=0), logits[0].argmax(dim=0)
        for sure, label, told in zip(
            sures.flatten().tolist(),
            sample.mask.flatten().tolist(),
            ids.flatten().tolist(),
            strict=True,
        ):
            if label != IGNORE_INDEX:
                place = max(0, math.ceil(sure * 15) - 1)
                bins.setdefault(place, []).append((label == told, sure))
    pixels = sum(map(len, bins.values()))
    confidence = sum(sure for found in bins.values() for _, sure in found) / pixels
    error = sum(
        len(found)
        / pixels
        * abs(
            sum(right for right, _ in found) / len(found)
            - sum(sure for _, sure in found) / len(found)
        )
        for found in bins.values()
    )
    return confidence, error


def test_a_plain_loop() -> None:
    found = evaluate(brightest(), Scenes(), batch_size=3, calibration=True)
    confidence, error = loop(brightest(), Scenes())
    assert found.confidence == pytest.approx(confidence, abs=1e-6)
    assert found.calibration_error == pytest.approx(error, abs=1e-6)
    assert 0.02 < error < 0.9  # not a case in which anything would pass


@pytest.mark.parametrize("config", [None, TTA, WINDOWS], ids=["single", "scales", "windows"])
def test_other_metrics_stay_as_they_are(config: InferenceConfig | None) -> None:
    alone = evaluate(brightest(), Scenes(), inference=config)
    both = evaluate(brightest(), Scenes(), inference=config, calibration=True)
    assert both.confusion == alone.confusion
    assert alone.confidence is None
    assert "calibration_error" not in alone.to_dict()


def by_hand(sure: list[float], right: list[bool]) -> Tensor:
    mask = torch.tensor([0 if is_right else 1 for is_right in right], dtype=torch.uint8)
    predicted = torch.zeros(len(sure), dtype=torch.long)
    return calibration_counts(predicted, torch.tensor(sure), mask, 2)


@pytest.mark.parametrize(
    ("sure", "right", "confidence", "error"),
    [
        ([1.0, 1.0], [True, True], 1.0, 0.0),
        ([1.0, 1.0], [True, False], 1.0, 0.5),
        # one bin, in which right and wrong cancel
        ([0.51, 0.52], [True, False], 0.515, 0.015),
        # two bins, in which they do not
        ([0.5, 0.9], [True, False], 0.7, (0.5 + 0.9) / 2),
    ],
)
def test_bins_by_hand(
    sure: list[float], right: list[bool], confidence: float, error: float
) -> None:
    metrics = evaluate(brightest(), Scenes([(8, 8)]))
    found = add_calibration(metrics, by_hand(sure, right))
    assert found.confidence == pytest.approx(confidence)
    assert found.calibration_error == pytest.approx(error, abs=1e-6)


class Unlabelled(Scenes):
    def read(self, index: int) -> Sample:
        sample = super().read(index)
        return Sample(sample.image, np.full_like(sample.mask, IGNORE_INDEX))


def test_without_a_label_there_is_none() -> None:
    found = evaluate(brightest(), Unlabelled([(8, 8)]), calibration=True).to_dict()
    assert found["calibration_error"] is found["confidence"] is None
