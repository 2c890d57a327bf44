"""A split at a glance: a table of its labels, and a sheet of its images with their masks."""

from __future__ import annotations

import cv2
import numpy as np

from aicsd.data.check import Survey
from aicsd.data.protocol import SegDataset
from aicsd.data.wrappers import spread
from aicsd.images import UInt8Array, overlay
from aicsd.legend import draw_legend, with_legend

CELL = 240
"""Longest side of one picture of a sheet, in pixels."""
SHOWN = 24
"""Images on a sheet."""
COLUMNS = 6
SIZES = 4
"""Image sizes that the table names."""


def summary(split: str, found: Survey) -> list[str]:
    """Lines on a split: how many images can be used, what is odd, and what is in the masks."""
    head = f"{split}: {found.images} images, {len(found.problems)} cannot be used"
    notes = [f"{split}: note: {note}" for note in found.notes]
    return [head, *notes, *label_table(found)]


def label_table(found: Survey) -> list[str]:
    """Lines: number and sizes of the images; pixels and images of every class."""
    usable = sum(found.sizes.values())
    lines = [f"  {usable} usable images, {_sizes(found)}"] if usable else []
    total = sum(found.pixels) + found.ignored
    if not usable:
        return lines
    if not any(found.present):
        return [*lines, "  no labels"]
    width = max(map(len, (*found.classes, "(ignored)")))
    lines.append(f"  {'class':<{width}}  {'pixels':>8}  {'images':>7}")
    for name, pixels, images in zip(found.classes, found.pixels, found.present, strict=True):
        lines.append(f"  {name:<{width}}  {_percent(pixels, total):>8}  {images:>7}")
    lines.append(f"  {'(ignored)':<{width}}  {_percent(found.ignored, total):>8}")
    return lines


def _sizes(found: Survey) -> str:
    common = found.sizes.most_common(SIZES)
    listed = [f"{width}x{height} ({count})" for (height, width), count in common]
    rest = len(found.sizes) - len(common)
    return ", ".join(listed) + (f" and {rest} other size{'s' if rest > 1 else ''}" if rest else "")


def _percent(part: int, total: int) -> str:
    if part and part / total < 0.00005:
        return "<0.01 %"
    return f"{100 * part / total:.2f} %"


def label_sheet(dataset: SegDataset) -> UInt8Array:
    """(H, W, 3) RGB: images spread over a split, with the colours of their classes over them."""
    count = min(SHOWN, len(dataset))
    cells = [_cell(dataset, index) for index in spread(count, len(dataset))]
    rows = -(-count // COLUMNS)
    sheet = np.full((rows * CELL, min(count, COLUMNS) * CELL, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // COLUMNS * CELL, number % COLUMNS * CELL
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    names, palette = dataset.classes
    legend = draw_legend(names, palette, range(len(names)), sheet.shape[1], sheet.shape[0])
    return with_legend(sheet, legend)


def _cell(dataset: SegDataset, index: int) -> UInt8Array:
    sample = dataset.read(index)
    height, width = sample.mask.shape
    scale = (CELL - 4) / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    mask = cv2.resize(sample.mask, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
    return overlay(image, mask, dataset.classes.palette)
