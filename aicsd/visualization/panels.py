"""Rows of pictures side by side: image, ground truth, predictions, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.files import atomic_path
from aicsd.images import Color, UInt8Array, colorize
from aicsd.models import Segmenter
from aicsd.visualization.figures import new_figure
from aicsd.visualization.views import ERROR_PALETTE, WRONG, error_map, picture_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_CELL = 256
"""Longest side of one picture of a contact sheet, in pixels."""


def save_panels(
    models: Mapping[str, Segmenter], dataset: SegDataset, indices: Sequence[int], path: Path
) -> None:
    """One row for each of ``indices``: image, ground truth and the prediction of every model.

    Args:
        models: by the title of their column.
        dataset: where the images come from.
        indices: which samples.
        path: PNG file; written beside its place and renamed.
    """
    samples = [dataset.read(index) for index in indices]
    predictions = {
        title: [picture_ids(model, sample.image) for sample in samples]
        for title, model in models.items()
    }
    figure = draw_panels(samples, predictions, dataset.classes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_panels(
    samples: Sequence[Sample],
    predictions: Mapping[str, Sequence[UInt8Array]],
    classes: Classes,
    *,
    errors: bool = False,
) -> Figure:
    """One row a sample: image, ground truth and every prediction; with ``errors`` a second row.

    Args:
        samples: images with labels.
        predictions: (H, W) class ids of every sample, by the title of their column.
        classes: names and colours.
        errors: below each prediction, mark its wrong pixels.
    """
    titles = ["image", "ground truth", *predictions]
    rows, columns = len(samples) * (2 if errors else 1), len(titles)
    height, width = samples[0].mask.shape
    cell = 2.1
    figure = new_figure(cell * columns, (cell - 0.06) * height / width * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    shown: set[int] = set()
    for number, sample in enumerate(samples):
        row = axes[number * (rows // len(samples))]
        masks = [sample.mask, *(found[number] for found in predictions.values())]
        shown.update(np.unique(np.concatenate([mask.ravel() for mask in masks])).tolist())
        pictures = [sample.image, *(colorize(mask, classes.palette) for mask in masks)]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
        if errors:
            wrong = [error_map(sample.mask, mask) for mask in masks[1:]]
            for axis, ids in zip(axes[2 * number + 1][2:], wrong, strict=True):
                axis.imshow(colorize(ids, ERROR_PALETTE), interpolation="nearest")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    entries = [entry for number, entry in enumerate(zip(*classes, strict=True)) if number in shown]
    if errors:
        entries.append(("wrong", ERROR_PALETTE[WRONG]))
    add_legend(figure, entries)
    return figure


def contact_sheet(model: Segmenter, samples: Sequence[Sample], classes: Classes) -> UInt8Array:
    """Rows of image, ground truth and prediction as one small (H, W, 3) RGB picture.

    Every picture is brought to the size of the first; unlike :func:`draw_panels` this is cheap
    enough for every validation.
    """
    height, width = samples[0].mask.shape
    shrink = min(1.0, SHEET_CELL / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    rows = []
    for sample in samples:
        masks = (sample.mask, picture_ids(model, sample.image))
        pictures = [cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)]
        pictures += [
            cv2.resize(colorize(mask, classes.palette), size, interpolation=cv2.INTER_NEAREST)
            for mask in masks
        ]
        rows.append(np.concatenate(pictures, axis=1))
    sheet: UInt8Array = np.concatenate(rows, axis=0).astype(np.uint8, copy=False)
    return sheet


def add_legend(figure: Figure, entries: Sequence[tuple[str, Color]]) -> None:
    """A row of colours and names below the pictures."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="0.4", label=name)
        for name, (r, g, b) in entries
    ]
    lines = math.ceil(len(handles) / (figure.get_figwidth() / 0.95))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        fontsize=8,
        frameon=False,
        ncols=math.ceil(len(handles) / lines),
    )
