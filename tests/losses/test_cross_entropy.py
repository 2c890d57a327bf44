"""Cross entropy on labelled pixels: against scikit-learn, and its laws."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from draws import draw, draw_mask

from aicsd.losses import CrossEntropyLoss, cross_entropy_loss
from aicsd.types import IGNORE_INDEX


@pytest.mark.parametrize("ignore_index", [0, 1, 255])
def test_another_index_of_unlabelled_pixels(ignore_index: int) -> None:
    logits = draw((2, 3, 4, 5))
    mask = draw_mask((2, 3, 4, 5), ignore_index=ignore_index)
    loss = cross_entropy_loss(logits, mask, ignore_index=ignore_index)
    assert float(loss) == pytest.approx(oracles.cross_entropy(logits, mask, ignore_index))
    assert torch.equal(CrossEntropyLoss(ignore_index)(logits, mask), loss)


def test_equals_log_loss_of_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, mask = draw((2, 5, 6, 7)), draw_mask((2, 5, 6, 7))
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[mask != IGNORE_INDEX].numpy()
    labels = mask[mask != IGNORE_INDEX].numpy()
    expected = metrics.log_loss(labels, probabilities, labels=range(5))
    assert float(cross_entropy_loss(logits, mask)) == pytest.approx(expected, rel=1e-9)


def test_uniform_logits_give_log_of_the_class_count() -> None:
    loss = cross_entropy_loss(torch.zeros(2, 11, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(11))


def test_a_sure_and_right_prediction_costs_nothing() -> None:
    mask = draw_mask((2, 3, 4, 4), ignored=0.0)
    logits = torch.nn.functional.one_hot(mask, 3).permute(0, 3, 1, 2).float() * 100
    assert float(cross_entropy_loss(logits, mask)) == 0


def test_mean_is_over_pixels_not_over_images() -> None:
    logits, mask = draw((2, 3, 4, 4)), draw_mask((2, 3, 4, 4), ignored=0.0)
    mask[1, 1:] = IGNORE_INDEX
    parts = [cross_entropy_loss(logits[b : b + 1], mask[b : b + 1]) for b in range(2)]
    expected = (16 * parts[0] + 4 * parts[1]) / 20
    torch.testing.assert_close(cross_entropy_loss(logits, mask), expected)


def test_the_sum_over_many_pixels_does_not_overflow_half() -> None:
    logits = torch.zeros(2, 21, 160, 160, dtype=torch.float16)
    loss = cross_entropy_loss(logits, torch.zeros(2, 160, 160, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(21), rel=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (13, 22), (2, 3)])
def test_native_resolution_takes_the_nearest_label(size: tuple[int, int]) -> None:
    logits = draw((2, 5, 4, 6))
    mask = draw_mask((2, 5, *size))
    rows = [y * size[0] // 4 for y in range(4)]
    columns = [x * size[1] // 6 for x in range(6)]
    small = mask[:, rows][:, :, columns]
    assert not bool((small == small[0, 0, 0]).all())
    assert torch.equal(cross_entropy_loss(logits, mask), cross_entropy_loss(logits, small))
    assert float(cross_entropy_loss(logits, mask)) == pytest.approx(
        oracles.cross_entropy(logits, small)
    )
