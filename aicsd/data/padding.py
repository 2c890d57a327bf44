"""Share of padding in random crops, from the sizes of the images alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aicsd.data.settings import AugmentConfig

SCALES = 65
"""Random scales, spread evenly over their range, that stand for all of them."""
MUCH = 0.5
"""Share of padding from which most of the computation is wasted."""


def padding_share(sizes: Mapping[tuple[int, int], int], config: AugmentConfig) -> float:
    """The part of a crop that is padding, on average over the images and the random scales.

    Args:
        sizes: number of images of every (H, W).
        config: crop and scales.

    Returns:
        0 to below 1; 0 without an image.
    """
    total = sum(sizes.values())
    if not total:
        return 0.0
    scales = np.linspace(config.scale_min, config.scale_max, SCALES)
    filled = 0.0
    for (height, width), count in sizes.items():
        base = config.short_side / min(height, width) if config.short_side else 1.0
        rows, columns = (
            np.minimum(side * base * scales / config.crop, 1.0) for side in (height, width)
        )
        filled += count * float((rows * columns).mean())
    return 1.0 - filled / total


def padding_warning(sizes: Mapping[tuple[int, int], int], config: AugmentConfig) -> str | None:
    """A line for crops of which more than half is padding on average; None for others."""
    share = padding_share(sizes, config)
    if share <= MUCH:
        return None
    short = sorted(min(size) for size, count in sizes.items() for _ in range(count))
    middle = short[len(short) // 2]
    fitting = max(middle // 32 * 32, 32)
    # scales below 1 may be the reason where the crop itself fits
    cure = (
        f"try --data.augment.crop {fitting}"
        if fitting < config.crop
        else "raise --data.augment.scale_min"
    )
    return (
        f"warning: {100 * share:.0f} % of a crop is padding on average: data.augment.crop is "
        f"{config.crop}, and the shorter side of a typical image has {middle} pixels; {cure}"
    )
