"""Significance of a difference between two methods against the noise of seeds and images.

Images are resampled (the bootstrap), the same ones for both methods and all seeds, and mIoU is
recomputed from their summed counts. Seeds are too few for that: an interval from resampling
three values covers the truth in 75 % of cases, not in 95 %. Their part is drawn from Student's t
distribution, so that with images that all agree the interval is that of the paired t-test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
CRITICAL_NORMAL = 1.959964
CRITICAL = (CRITICAL_NORMAL + 0.841621) ** 2
"""Constant of a two-sided level of 5 % and a power of 80 % (Cohen, 1988, table 2.4)."""
ASSUMED_STD = 0.005
"""Standard deviation of mIoU over seeds where fewer than two runs show it."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Interval(NamedTuple):
    """Interval of a mean difference at the confidence level :data:`LEVEL`."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the difference is beyond the noise."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gain:
    """Difference of mIoU to another row, over the seeds that both have.

    Args:
        to: the other row.
        values: one a seed.
        interval: interval of their mean; None for one seed.
        over_images: whether the noise of the images is in it.
        images_alone: the interval that the images leave however many seeds there are; None
            without counts of the images.
    """

    to: str
    values: list[float]
    interval: Interval | None
    over_images: bool
    images_alone: Interval | None = None

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def is_clear(self) -> bool:
        """Whether its sign is beyond the noise."""
        return self.interval is not None and self.interval.excludes_zero

    @property
    def seeds_needed(self) -> float:
        """Pairs of runs by which a gain as large as this one would be clear; may be infinite."""
        known = len(self.values) > 1
        return seeds_needed(self.mean, stdev(self.values) if known else 2**0.5 * ASSUMED_STD)


def seeds_needed(difference: float, std: float) -> float:
    """Pairs by which a paired t-test at 5 % finds a difference with a power of 80 %.

    n = (z_0.975 + z_0.8)² s² / d² + z_0.975² / 2 (Guenther, 1981), at least 2.

    Args:
        difference: d, the mean over pairs.
        std: s, the standard deviation of the pairs' differences.

    Returns:
        A whole number; infinity for no difference.
    """
    if difference == 0:
        return math.inf
    return max(2, math.ceil(CRITICAL * (std / difference) ** 2 + CRITICAL_NORMAL**2 / 2))


def parts_of(matrices: Integers) -> Integers:
    """Counts for the mIoU from confusion matrices: (..., C, C) -> (..., 3, C).

    Right pixels, labelled pixels and predicted pixels of every class.
    """
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([right, matrices.sum(axis=-1), matrices.sum(axis=-2)], axis=-2)


def miou(parts: Floats | Integers) -> Floats:
    """Mean IoU over the classes that occur: (..., 3, C) -> (...)."""
    right, labelled, predicted = np.moveaxis(np.asarray(parts, np.float64), -2, 0)
    union = labelled + predicted - right
    occurs = union > 0
    iou = np.divide(right, union, out=np.zeros_like(union), where=occurs)
    count = occurs.sum(axis=-1)
    mean: Floats = np.full(count.shape, np.nan)
    np.divide(iou.sum(axis=-1), count, out=mean, where=count > 0)
    return mean


def resampled(parts: Integers, resamples: int = RESAMPLES) -> Floats:
    """mIoU of resampled sets of images: (N, 3, C) -> (R,).

    Of equally many images, always the same sets are drawn, so that results are paired by place.
    """
    images = len(parts)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    sums = drawn.astype(np.float64) @ parts.reshape(images, -1)
    return miou(sums.reshape(resamples, 3, -1))


def paired_interval(differences: Sequence[float], over_images: Sequence[Floats]) -> Interval | None:
    """Interval of the mean over seeds of a difference between two methods.

    Args:
        differences: on all images, one a seed.
        over_images: (R,) the same difference on resampled sets of images, one array a seed; empty
            without counts of the images, and then seeds alone make the interval.

    Returns:
        None for one seed, since the spread over seeds is unknown.
    """
    count = len(differences)
    if count < 2:
        return None
    spread = float(np.std(differences, ddof=1)) / np.sqrt(count)
    resamples = len(over_images[0]) if over_images else RESAMPLES
    seeds = spread * np.random.default_rng(1).standard_t(count - 1, resamples)
    images = np.mean(over_images, axis=0) if over_images else np.mean(differences)
    outside = (1 - LEVEL) / 2
    low, high = np.nanquantile(images + seeds, [outside, 1 - outside])
    return Interval(float(low), float(high))


def gain_over(to: str, values: Sequence[float], over_images: Sequence[Floats]) -> Gain:
    """The gain with its interval: arguments as of :func:`paired_interval`, ``to`` of the gain."""
    interval = paired_interval(values, over_images)
    alone = None
    if over_images:
        outside = (1 - LEVEL) / 2
        low, high = np.nanquantile(np.mean(over_images, axis=0), [outside, 1 - outside])
        alone = Interval(float(low), float(high))
    return Gain(to, list(values), interval, bool(over_images), alone)


def percent(values: Sequence[float], sign: str = "", places: int = 2) -> str:
    """Mean ± sample standard deviation of fractions, in percent; of one value no deviation."""
    if not values:
        return "-"
    text = f"{100 * mean(values):{sign}.{places}f}"
    return text + (f" ± {100 * stdev(values):.{places}f}" if len(values) > 1 else "")
