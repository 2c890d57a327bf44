"""The pictures of a report, a page for each image: photo, labels, predictions, errors, legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from aicsd.data.protocol import Classes, Sample
from aicsd.images import Color, UInt8Array, color_table
from aicsd.visualization.charts import jpeg, png
from aicsd.visualization.views import ERROR_PALETTE, UNLABELLED, WRONG, Views, error_map

PICTURE_SIDE = 480
"""Longest side of a picture in the page, in pixels."""


def draw_pages(
    samples: Sequence[Sample], names: Sequence[str], views: dict[str, Views], classes: Classes
) -> list[dict[str, Any]]:
    """Data of the template about every image.

    Args:
        samples: images with labels.
        names: names of the images.
        views: predictions for the samples, by the title of the network.
        classes: names and colours.

    Returns:
        For every image its name, pictures and errors (title and data URI), and a legend (name and
        colour) of the classes that its labels or predictions hold.
    """
    pages = []
    for number, (sample, name) in enumerate(zip(samples, names, strict=True)):
        masks = {"ground truth": sample.mask}
        masks |= {title: view.masks[number] for title, view in views.items()}
        pictures = [("image", jpeg(_shrunk(sample.image, Image.Resampling.LANCZOS)))]
        pictures += [(title, _ids(mask, classes.palette)) for title, mask in masks.items()]
        wrong = {title: error_map(sample.mask, view.masks[number]) for title, view in views.items()}
        errors = [(f"errors of {title}", _ids(ids, ERROR_PALETTE)) for title, ids in wrong.items()]
        legend = _legend(list(masks.values()), classes)
        if any((ids == WRONG).any() for ids in wrong.values()):
            legend.append(("error", hex_color(ERROR_PALETTE[WRONG])))
        if any((ids == UNLABELLED).any() for ids in wrong.values()):
            legend.append(("no label", NO_LABEL))
        pages.append({"name": name, "pictures": pictures, "errors": errors, "legend": legend})
    return pages


def hex_color(color: Color) -> str:
    """(255, 0, 16) -> ``#ff0010``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


NO_LABEL = hex_color((224, 224, 224))


def _legend(masks: Sequence[UInt8Array], classes: Classes) -> list[tuple[str, str]]:
    """Name and colour of the classes that are to be seen."""
    shown = {int(value) for mask in masks for value in np.unique(mask)}
    entries = enumerate(zip(*classes, strict=True))
    return [(name, hex_color(color)) for number, (name, color) in entries if number in shown]


def _ids(mask: UInt8Array, palette: tuple[Color, ...]) -> str:
    picture = Image.fromarray(_shrunk(mask, Image.Resampling.NEAREST))
    picture.putpalette(color_table(palette).tobytes())
    return png(picture)


def _shrunk(array: UInt8Array, filtered: Image.Resampling) -> UInt8Array:
    picture = Image.fromarray(array)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), filtered)
    return np.asarray(picture)
