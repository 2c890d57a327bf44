"""Line charts and heat maps for HTML pages: numbers for an inline SVG, tiny PNGs for matrices."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from aicsd.images import UInt8Array
from aicsd.visualization.figures import MINUS
from aicsd.visualization.views import FloatArray

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 24
"""Size of a chart in units of its SVG, and margins that hold the scales."""
MOST_POINTS = 240
SCALE_STEPS = 64
"""Colours of the scale beside a heat map."""
UNKNOWN_COLOR = 128
"""Grey level of a cell that has no value."""


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``color`` counts from 0 in the page's palette."""

    title: str
    steps: Sequence[float]
    values: Sequence[float]
    color: int


@dataclass(frozen=True)
class Chart:
    """Charts for the template.

    Args:
        title: above the chart.
        lines: title, number of the colour, and the points of an SVG polyline.
        across: places and labels of the scale below.
        up: places and labels of the scale at the left.
    """

    title: str
    lines: list[tuple[str, int, str]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def draw_chart(title: str, lines: Sequence[Line]) -> Chart | None:
    """A chart from 0 up; None if no line has a point."""
    lines = [line for line in lines if len(line.values)]
    if not lines:
        return None
    last = max(max(line.steps) for line in lines) or 1
    highest = max(max(line.values) for line in lines)
    ticks = nice_ticks(highest)
    top = max(ticks[-1], highest)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - max(value, 0.0) / top), 1)

    drawn = []
    for line in lines:
        every = -(-len(line.values) // MOST_POINTS)
        points = zip(line.steps[::every], line.values[::every], strict=True)
        text = " ".join(f"{x(step):g},{y(value):g}" for step, value in points)
        drawn.append((line.title, line.color, text))
    return Chart(
        title,
        drawn,
        [(x(tick), f"{tick:g}") for tick in nice_ticks(last) if tick <= last],
        [(y(tick), f"{tick:g}") for tick in ticks],
    )


def nice_ticks(highest: float) -> list[float]:
    """Three to six round numbers from 0 to about ``highest``: steps of 1, 2 or 5 times 10^n."""
    if not 0 < highest < float("inf"):
        return [0.0, 1.0]
    scale = 10.0 ** np.floor(np.log10(highest / 4))
    step = next(scale * part for part in (1, 2, 5, 10) if highest / (scale * part) <= 5)
    return [float(f"{number * step:.6g}") for number in range(int(highest / step + 1e-9) + 1)]


def heat_map(matrix: FloatArray, colors: str, lowest: float, highest: float) -> dict[str, Any]:
    """A matrix as a picture with one pixel an entry, its values, and a scale of the colours.

    Args:
        matrix: (C, C); NaN is grey.
        colors: name of a colour map of matplotlib.
        lowest: value of its first colour.
        highest: value of its last colour.
    """
    import matplotlib

    span = (highest - lowest) or 1.0
    parts = np.clip((matrix - lowest) / span, 0, 1)
    scale = np.linspace(1, 0, SCALE_STEPS)[:, None]
    pixels, bar = (
        np.rint(255 * matplotlib.colormaps[colors](np.nan_to_num(values))[..., :3]).astype(np.uint8)
        for values in (parts, scale)
    )
    pixels[np.isnan(matrix)] = UNKNOWN_COLOR
    values = [[None if v != v else float(f"{v:.3g}") for v in row] for row in matrix.tolist()]
    labels = [f"{lowest + part * span:.3g}" for part in (1, 0.5, 0)]
    return {
        "picture": png(Image.fromarray(pixels)),
        "values": values,
        "bar": png(Image.fromarray(bar)),
        "labels": [*map(_minus, labels)],
    }


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def png(picture: Image.Image) -> str:
    """A picture as a data URI."""
    return _data_uri(picture, "png", optimize=True)


def jpeg(image: UInt8Array) -> str:
    """An (H, W, 3) RGB photo as a data URI."""
    return _data_uri(Image.fromarray(image), "jpeg", quality=80, optimize=True)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
