"""A strip with the colour and name of each class, below a picture of class colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aicsd.images import Color, UInt8Array

LEAST_TEXT, LARGEST_TEXT = 12, 32
"""Height of the letters in pixels, between which it is ``1 / PER_WIDTH`` of the width."""
PER_WIDTH = 64
BACKGROUND, TEXT, BORDER = (255, 255, 255), (0, 0, 0), (110, 110, 110)


def classes_in(mask: UInt8Array, count: int) -> list[int]:
    """Ids of the classes that a mask holds, ascending; the ids of ignored pixels are none.

    Args:
        mask: (H, W) class ids.
        count: number of classes.
    """
    # np.bincount would hold eight bytes a pixel
    histogram = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel()
    return np.flatnonzero(histogram[:count]).tolist()


def draw_legend(
    names: Sequence[str], palette: Sequence[Color], ids: Iterable[int], width: int, height: int
) -> UInt8Array:
    """Swatch and name of each class in ``ids``, in their order.

    Args:
        names: names of all classes.
        palette: their colours.
        ids: classes that the picture shows.
        width: width of the picture and of the legend, in pixels.
        height: height of the picture.

    Returns:
        (h, width, 3) RGB with an even h, so that a video stays one. h is 0 where the legend would
        be higher than half the picture: beside a thumbnail it is useless.
    """
    size = min(max(width // PER_WIDTH, LEAST_TEXT), LARGEST_TEXT)
    font = _font(size)
    line = 2 * round(0.8 * size)
    swatch, gap = size, size // 2
    places: list[tuple[int, int, int]] = []
    left, top = gap, 0
    for index in ids:
        wide = swatch + gap + round(font.getlength(names[index]))
        if left > gap and left + wide + gap > width:
            left, top = gap, top + line
        places.append((index, left, top))
        left += wide + 2 * gap
    high = top + line if places else 0
    if 2 * high > height:
        return np.empty((0, width, 3), np.uint8)
    strip = Image.new("RGB", (width, high), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for index, left, top in places:
        middle = top + line // 2
        box = (left, middle - swatch // 2, left + swatch - 1, middle - swatch // 2 + swatch - 1)
        draw.rectangle(box, fill=palette[index], outline=BORDER)
        draw.text((left + swatch + gap, middle), names[index], TEXT, font, anchor="lm")
    return np.asarray(strip)


def with_legend(picture: UInt8Array, legend: UInt8Array) -> UInt8Array:
    """(H + h, W, 3): the picture above its legend."""
    return np.concatenate([picture, legend]) if len(legend) else picture


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # it has the letters of more scripts than the font within Pillow
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
