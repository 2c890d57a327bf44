"""Intra-class distributions: where on the image a network expects each class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from aicsd.data.protocol import Classes, Sample
from aicsd.images import colorize
from aicsd.losses import intra_class_distributions
from aicsd.models import Segmenter, resize
from aicsd.visualization.figures import SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
UNSEEN = "0.55"


@torch.inference_mode()
def draw_distributions(
    model: Segmenter, sample: Sample, classes: Classes, temperature: float = 1.0
) -> Figure:
    """Image, ground truth, and a heat map of rho_c for every class c (AICSD, figure 1).

    rho_c is :func:`aicsd.losses.intra_class_distributions` at the network's own resolution,
    resized to the image. Each map has its own scale, from 0 to its largest value: the sum of each
    is 1, so that a map with a small bright spot is one that is sure of the place.

    Args:
        model: whose logits are shown.
        sample: one image with labels.
        classes: names and colours.
        temperature: T > 0 of the distributions.
    """
    rho = intra_class_distributions(model.image_output(sample.image).logits, temperature)
    size = (sample.image.shape[0], sample.image.shape[1])
    maps = resize(rho, size, model.align_corners)[0].cpu().numpy()  # (C, H, W)
    rows = math.ceil((len(classes.names) + 2) / COLUMNS)
    width = 8.0
    height = rows * (width / COLUMNS * size[0] / size[1] + 0.26)
    figure = new_figure(width, height)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    _show(axes[0], sample.image, "image")
    _show(axes[1], colorize(sample.mask, classes.palette), "ground truth")
    present = set(sample.mask.ravel().tolist())
    for class_id, (axis, name) in enumerate(zip(axes[2:], classes.names, strict=False)):
        # rho is spiky: its root shows the weak places beside the peak
        axis.imshow(maps[class_id] ** 0.5, cmap=SEQUENTIAL, vmin=0)
        axis.set_title(name, fontsize=9, pad=2, color="black" if class_id in present else UNSEEN)
    return figure


def _show(axis: Axes, picture: object, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")  # type: ignore[arg-type]
    axis.set_title(title, fontsize=9, pad=2, fontweight="bold")
