"""Intervals against scipy, against sums by hand, and against how often they hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from aicsd.benchmark.statistics import (
    Interval,
    gain_over,
    miou,
    paired_interval,
    parts_of,
    resampled,
    seeds_needed,
)
from aicsd.evaluation import metrics_from_confusion


def matrices(images: int, classes: int = 4, seed: int = 0) -> np.ndarray:
    """Confusion matrices of images that differ in size and in how well they went."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 50, (images, classes, classes))
    found[:, np.arange(classes), np.arange(classes)] *= rng.integers(1, 9, (images, 1))
    return found


def test_miou_is_that_of_the_metrics() -> None:
    import torch

    found = matrices(5)
    found[:, 3, :] = found[:, :, 3] = 0  # a class that occurs nowhere
    metrics = metrics_from_confusion(torch.from_numpy(found.sum(axis=0)), tuple("abcd"), 5)
    assert miou(parts_of(found.sum(axis=0))) == pytest.approx(metrics.miou, abs=1e-12)
    assert miou(parts_of(found).sum(axis=0)) == pytest.approx(metrics.miou, abs=1e-12)
    assert np.isnan(miou(np.zeros((3, 4))))


def test_resampled_sets_of_two_images_are_three_sets_with_the_right_frequencies() -> None:
    first, second = matrices(2)
    by_hand = {
        name: float(miou(parts_of(sum_)))
        for name, sum_ in (("both", first + second), ("first", 2 * first), ("second", 2 * second))
    }
    found = resampled(parts_of(np.stack([first, second])), 20_000)
    for name, share in (("both", 0.5), ("first", 0.25), ("second", 0.25)):
        assert np.isclose(found, by_hand[name]).mean() == pytest.approx(share, abs=0.015)


def test_interval_over_images_is_scipys_bootstrap() -> None:
    one, other = parts_of(matrices(40)), parts_of(matrices(40, seed=1))

    def difference(indices: np.ndarray, axis: int) -> np.ndarray:
        chosen = np.moveaxis(np.atleast_2d(indices), axis, -1).astype(int)
        return np.squeeze(miou(one[chosen].sum(axis=-3)) - miou(other[chosen].sum(axis=-3)))

    expected = stats.bootstrap(
        (np.arange(40.0),),
        difference,
        n_resamples=10_000,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(5),
        batch=500,
    ).confidence_interval
    # the same networks with two seeds: nothing but the images makes noise
    full = float(miou(one.sum(axis=0)) - miou(other.sum(axis=0)))
    over_images = resampled(one) - resampled(other)
    found = paired_interval([full, full], [over_images, over_images])
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


@pytest.mark.parametrize("differences", [(0.01, 0.03), (0.02, -0.01, 0.03), (0.1, 0.2, 0.3, 0.4)])
@pytest.mark.parametrize("known_images", [True, False])
def test_interval_over_seeds_is_the_paired_t_test(
    differences: tuple[float, ...], known_images: bool
) -> None:
    over_images = [np.full(10_000, value) for value in differences] if known_images else []
    found = paired_interval(differences, over_images)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    width = expected.high - expected.low
    assert found is not None
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_one_seed_has_no_interval() -> None:
    assert paired_interval([0.3], [np.full(10, 0.3)]) is None


def test_zero_outside() -> None:
    assert Interval(0.1, 0.2).excludes_zero
    assert Interval(-0.2, -0.1).excludes_zero
    assert not Interval(-0.1, 0.2).excludes_zero
    assert not Interval(0.0, 0.2).excludes_zero


def test_it_holds_as_often_as_it_says_and_resampled_seeds_do_not() -> None:
    """Three seeds, no noise of images: 95 % of intervals hold the truth, resampled seeds' 75 %."""
    rng = np.random.default_rng(3)
    sets = list(itertools.product(range(3), repeat=3))
    held = naive = 0
    for _ in range(400):
        differences = rng.normal(1.0, 0.5, 3)
        found = paired_interval(differences.tolist(), [])
        assert found is not None
        held += found.low <= 1.0 <= found.high
        means = np.sort([differences[list(chosen)].mean() for chosen in sets])
        low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
        naive += low <= 1.0 <= high
    assert 0.92 < held / 400 < 0.98
    assert 0.68 < naive / 400 < 0.82


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.0])
def test_seeds_needed_have_the_power_of_the_exact_test(ratio: float) -> None:
    """The power of a paired t-test by scipy's noncentral t distribution."""

    def power(pairs: float) -> float:
        bound = stats.t.ppf(0.975, pairs - 1)
        return float(stats.nct.sf(bound, pairs - 1, ratio * pairs**0.5))

    found = seeds_needed(ratio, 1.0)
    assert power(found) > 0.795
    assert power(found - 1) < 0.805
    assert seeds_needed(-ratio, 1.0) == found
    assert seeds_needed(0.0, 1.0) == float("inf")


def test_a_gain_tells_what_images_alone_leave() -> None:
    over_images = [np.linspace(-1, 3, 10_000), np.linspace(0, 4, 10_000)]
    gain = gain_over("none", [1.0, 2.0], over_images)
    assert gain.images_alone == pytest.approx((-0.4, 3.4), abs=0.01)
    assert gain.interval == paired_interval([1.0, 2.0], over_images)
    assert gain_over("none", [1.0], []).images_alone is None
