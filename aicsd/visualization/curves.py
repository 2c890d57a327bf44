"""Training curves: every loss term over its weight, and the mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aicsd.visualization.figures import OKABE_ITO, new_figure, trim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, WEIGHT, MIOU = "loss/", "weight/", "val/miou"
SMOOTHED_OVER = 0.05
"""Part of a curve that one point of the bold line is the mean of."""


def series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps, and the values of ``key`` there."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in found], [float(value) for _, value in found]


def term_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss terms in a log, in its order."""
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(LOSS))
    return [key.removeprefix(LOSS) for key in keys]


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over ``SMOOTHED_OVER`` of the curve; shorter at both ends."""
    reach = round(len(values) * SMOOTHED_OVER / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    means: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return means


def draw_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Columns: the whole loss over the mIoU, then every term over its weight.

    Args:
        logs: lines of ``metrics.jsonl`` by the title of the run.
    """
    terms = list(dict.fromkeys(name for lines in logs.values() for name in term_names(lines)))
    figure = new_figure(max(4.0, 2.4 * (len(terms) + 1)), 4.3)
    axes = figure.subplots(2, len(terms) + 1, squeeze=False, sharex=True)
    for number, (title, lines) in enumerate(logs.items()):
        color = OKABE_ITO[number % len(OKABE_ITO)]
        _noisy(axes[0, 0], series(lines, "loss"), color, title)
        steps, values = series(lines, MIOU)
        axes[1, 0].plot(steps, [100 * value for value in values], ".-", color=color, lw=1.4)
        for column, name in enumerate(terms, start=1):
            _noisy(axes[0, column], series(lines, LOSS + name), color)
            axes[1, column].plot(*series(lines, WEIGHT + name), color=color, lw=1.4)
    for column, name in enumerate(["loss", *terms]):
        axes[0, column].set_title(name.replace("_", " "), fontsize=10)
    for row, labels in enumerate((("loss", "unweighted value"), ("val mIoU, %", "weight"))):
        for column in range(len(terms) + 1):
            axis = axes[row, column]
            trim(axis)
            if column < 2:
                axis.set_ylabel(labels[column], fontsize=8)
            axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("step", fontsize=8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _noisy(
    axis: Axes, points: tuple[list[int], list[float]], color: str, label: str | None = None
) -> None:
    """The values faintly, their running mean boldly."""
    steps, values = points
    if not values:
        return
    axis.plot(steps, values, color=color, alpha=0.25, lw=0.7)
    axis.plot(steps, smooth(values), color=color, lw=1.4, label=label)
