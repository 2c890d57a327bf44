"""Rows of pictures side by side: image, ground truth, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aicsd.data.base import Classes, SegDataset, UInt8Array
from aicsd.files import atomic_path
from aicsd.models import Segmenter
from aicsd.visualization.masks import colorize


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = ["image", "ground truth", *models]
    figure = Figure(figsize=(2.1 * len(titles), 2.0 * len(indices) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(indices), len(titles), squeeze=False)
    shown: set[int] = set()
    for row, index in zip(axes, indices, strict=True):
        sample = dataset.read(index)
        masks = [sample.mask, *(model.predict(sample.image) for model in models.values())]
        shown.update(np.unique(np.concatenate([mask.ravel() for mask in masks])).tolist())
        pictures: list[UInt8Array] = [sample.image]
        pictures += [colorize(mask, dataset.classes.palette) for mask in masks]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    _add_legend(figure, dataset.classes, shown)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _add_legend(figure: object, classes: Classes, shown: set[int]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=(color[0] / 255, color[1] / 255, color[2] / 255), edgecolor="0.4", label=name
        )
        for class_id, (name, color) in enumerate(zip(*classes, strict=True))
        if class_id in shown
    ]
    figure.legend(  # type: ignore[attr-defined]
        handles=handles, loc="outside lower center", ncols=min(len(handles), 11), fontsize=8,
        frameon=False,
    )  # fmt: skip
