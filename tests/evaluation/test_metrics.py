"""Metrics from a confusion matrix: against scikit-learn and by hand."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aicsd.cli.evaluate import print_metrics
from aicsd.evaluation import Metrics, metrics_from_confusion, to_json
from aicsd.types import IGNORE_INDEX

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


def from_counts(counts: list[list[int]]) -> Metrics:
    return metrics_from_confusion(torch.tensor(counts), names(len(counts)), images=3)


def same(value: float, expected: float) -> bool:
    both_nan = math.isnan(value) and math.isnan(expected)
    return both_nan or value == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("absent", [[], [2], [0, 4]])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_equal_sklearn(seed: int, absent: list[int]) -> None:
    rng = np.random.default_rng(seed)
    present = [number for number in range(5) if number not in absent]
    labels = rng.choice([*present, IGNORE_INDEX], 500)
    predicted = np.where(rng.random(500) < 0.6, labels, rng.choice(present, 500))
    predicted[labels == IGNORE_INDEX] = rng.choice(5, (labels == IGNORE_INDEX).sum())
    keep = labels != IGNORE_INDEX
    labels, predicted = labels[keep], predicted[keep]
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(5))
    metrics = metrics_from_confusion(torch.from_numpy(matrix), names(5), images=7)

    iou = sklearn_metrics.jaccard_score(labels, predicted, labels=present, average=None)
    for number, value in zip(present, iou, strict=True):
        assert metrics.per_class_iou[f"class {number}"] == pytest.approx(value, rel=1e-12)
    for number in absent:
        assert math.isnan(metrics.per_class_iou[f"class {number}"])
    assert list(metrics.per_class_iou) == list(names(5))
    assert metrics.miou == pytest.approx(iou.mean(), rel=1e-12)
    assert metrics.pixel_accuracy == pytest.approx(
        sklearn_metrics.accuracy_score(labels, predicted), rel=1e-12
    )
    assert metrics.class_accuracy == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predicted), rel=1e-12
    )
    weighted = sklearn_metrics.jaccard_score(labels, predicted, average="weighted")
    assert metrics.fwiou == pytest.approx(weighted, rel=1e-12)
    assert metrics.images == 7


def test_by_hand() -> None:
    metrics = from_counts([[6, 2], [1, 3]])
    assert metrics.per_class_iou == {"class 0": 6 / 9, "class 1": 3 / 6}
    assert metrics.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert metrics.pixel_accuracy == pytest.approx(9 / 12)
    assert metrics.class_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert metrics.fwiou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)


def test_rows_are_labels() -> None:
    metrics = from_counts([[5, 5], [0, 10]])
    assert metrics.class_accuracy == pytest.approx((0.5 + 1.0) / 2)


def test_a_class_in_neither_labels_nor_predictions_does_not_count() -> None:
    metrics = from_counts([[6, 0, 2], [0, 0, 0], [1, 0, 3]])
    reduced = from_counts([[6, 2], [1, 3]])
    assert math.isnan(metrics.per_class_iou["class 1"])
    for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou"):
        assert getattr(metrics, name) == pytest.approx(getattr(reduced, name), rel=1e-14)


def test_a_class_that_is_only_predicted_has_iou_zero() -> None:
    metrics = from_counts([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    extra = from_counts([[6, 1, 1], [1, 3, 0], [0, 0, 0]])
    assert math.isnan(metrics.per_class_iou["class 2"])
    assert extra.per_class_iou["class 2"] == 0.0
    assert extra.miou == pytest.approx((6 / 9 + 3 / 5 + 0) / 3)
    assert extra.class_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert extra.fwiou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 5)


def test_a_class_that_is_never_found_has_iou_zero() -> None:
    metrics = from_counts([[5, 0], [5, 0]])
    assert metrics.per_class_iou == {"class 0": 0.5, "class 1": 0.0}
    assert metrics.miou == 0.25
    assert metrics.class_accuracy == 0.5


def test_nothing_labelled_is_nan_everywhere() -> None:
    metrics = from_counts([[0, 0], [0, 0]])
    for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou"):
        assert math.isnan(getattr(metrics, name))
    assert metrics.to_dict() == {
        "miou": None,
        "pixel_accuracy": None,
        "class_accuracy": None,
        "fwiou": None,
        "per_class_iou": {"class 0": None, "class 1": None},
        "per_class_accuracy": {"class 0": None, "class 1": None},
        "images": 3,
        "confusion": [[0, 0], [0, 0]],
    }


def test_to_dict_is_json_without_nan() -> None:
    metrics = from_counts([[6, 0, 2], [0, 0, 0], [1, 0, 3]])
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert json.loads(text) == metrics.to_dict()
    assert metrics.to_dict()["per_class_iou"]["class 1"] is None
    assert metrics.to_dict()["miou"] == metrics.miou


def test_a_list_in_a_name_stays_as_it_is() -> None:
    values = {"zone [1, 2]": [[1, 2], [3, 4]], "miou": 0.5}
    text = to_json(values)
    assert json.loads(text) == values
    assert "[1,2]" in text


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("road [paved]", "road [dirt]", "[/x]", ":car:")
    print_metrics(metrics_from_confusion(torch.eye(4), given, 1))
    printed = capsys.readouterr().out.splitlines()[1:5]
    assert tuple(line.split("100.00")[0].strip() for line in printed) == given


def test_large_counts_are_exact() -> None:
    million = 10**9 + 7
    metrics = from_counts([[million, 1], [0, million]])
    assert metrics.pixel_accuracy == (2 * million) / (2 * million + 1)
    assert metrics.pixel_accuracy < 1


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6).flatmap(lambda n: arrays(np.int64, (n, n), elements=st.integers(0, 50))),
    st.randoms(),
)
def test_laws(matrix: np.ndarray, random: Random) -> None:
    count = len(matrix)
    metrics = metrics_from_confusion(torch.from_numpy(matrix), names(count), 1)
    labelled, predicted = matrix.sum(1), matrix.sum(0)
    iou, weighted, recalls = [], 0.0, []
    for number in range(count):
        union = labelled[number] + predicted[number] - matrix[number, number]
        value = metrics.per_class_iou[f"class {number}"]
        if union == 0:
            assert math.isnan(value)
            continue
        assert value == pytest.approx(matrix[number, number] / union)
        iou.append(value)
        if labelled[number]:
            weighted += labelled[number] / matrix.sum() * value
            recalls.append(matrix[number, number] / labelled[number])
    assert same(metrics.miou, sum(iou) / len(iou) if iou else math.nan)
    assert same(metrics.fwiou, weighted if matrix.sum() else math.nan)
    assert same(metrics.class_accuracy, sum(recalls) / len(recalls) if recalls else math.nan)
    order = list(range(count))
    random.shuffle(order)
    shuffled = metrics_from_confusion(
        torch.from_numpy(matrix[np.ix_(order, order)].copy()), names(count), 1
    )
    for name in ("miou", "pixel_accuracy", "class_accuracy", "fwiou"):
        assert same(getattr(shuffled, name), getattr(metrics, name))
