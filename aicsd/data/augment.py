"""Augmentation on uint8 arrays with OpenCV. Only the pixels that the crop needs are resized."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.data.protocol import Classes, Sample
from aicsd.data.settings import AugmentConfig
from aicsd.images import UInt8Array
from aicsd.types import IGNORE_INDEX, EvaluationProtocol

MAP_STRIDE = 4
"""Pixels between two cells of a sample's maps, where its dataset has no ``map_stride``."""


class Padding(NamedTuple):
    """Padding of a crop that reaches beyond the image."""

    color: tuple[int, int, int] = (124, 116, 104)  # the ImageNet mean: 0 after normalisation
    class_id: int = IGNORE_INDEX


def padding_of(
    protocol: EvaluationProtocol, classes: Classes, color: tuple[int, int, int] | None = None
) -> Padding:
    """Ignored pixels of ``color``, or, as in the released code, black ones labelled background."""
    if protocol == "standard":
        return Padding() if color is None else Padding(color)
    has_background = classes.names[0] == "background"
    return Padding((0, 0, 0), 0 if has_background else IGNORE_INDEX)


class Crop(NamedTuple):
    """A training sample, all of side ``crop``."""

    image: UInt8Array
    mask: UInt8Array
    valid: npt.NDArray[np.bool_]
    """False where the crop reaches beyond the image."""
    maps: Tensor | None = None
    """(C, s, s) float32 with s = side / stride, rounded up: the sample's maps in the same view."""


class View(NamedTuple):
    """The part of an image that a crop shows."""

    top: int
    left: int
    rows: int
    """Rows of the image in the crop, from ``top``."""
    columns: int
    content_rows: int
    """Rows of the crop with content; rows below are padding."""
    content_columns: int
    flipped: bool


def draw_view(height: int, width: int, rng: np.random.Generator, config: AugmentConfig) -> View:
    """Random scale, position and flip of a crop of an image (height, width)."""
    side = config.crop
    scale = rng.uniform(config.scale_min, config.scale_max)
    if config.short_side:
        scale *= config.short_side / min(height, width)
    rows, content_rows = _window(height, side, scale)
    columns, content_columns = _window(width, side, scale)
    top = int(rng.integers(0, height - rows + 1))
    left = int(rng.integers(0, width - columns + 1))
    flipped = bool(rng.random() < config.flip)
    return View(top, left, rows, columns, content_rows, content_columns, flipped)


def augment(
    sample: Sample,
    rng: np.random.Generator,
    config: AugmentConfig,
    padding: Padding | None = None,
    map_stride: int = MAP_STRIDE,
) -> Crop:
    """Random scale, crop, flip, blur and colour of one sample, all drawn from ``rng``.

    Image, mask and maps, which have ``map_stride``, are cropped with one view.
    """
    height, width = sample.mask.shape
    view = draw_view(height, width, rng, config)
    # drawn whether used or not, so that switching one off leaves the others as they were
    blur, sigma = rng.random(2)
    jitter = rng.uniform(-1.0, 1.0, 4)
    crop = _scaled_crop(sample, view, config.crop, padding or Padding())
    if view.flipped:
        crop = Crop(_mirror(crop.image), _mirror(crop.mask), _mirror(crop.valid))
    image = crop.image
    if blur < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), 0.1 + 0.9 * sigma).astype(np.uint8, copy=False)
    if config.jitter:
        image = _jitter_color(image, jitter * config.jitter)
    maps = sample.maps
    if maps is not None:
        maps = crop_maps(maps, (height, width), view, config.crop, map_stride)
    return crop._replace(image=image, maps=maps)


def _scaled_crop(sample: Sample, view: View, side: int, padding: Padding) -> Crop:
    top, left, rows, columns, content_rows, content_columns, _ = view
    window = np.s_[top : top + rows, left : left + columns]
    size = (content_columns, content_rows)
    shrinks = content_rows < rows or content_columns < columns
    shrink = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(sample.image[window], size, interpolation=shrink)
    mask = cv2.resize(sample.mask[window], size, interpolation=cv2.INTER_NEAREST_EXACT)
    valid = np.zeros((side, side), np.bool_)
    valid[:content_rows, :content_columns] = True
    return Crop(_pad(image, side, padding.color), _pad(mask, side, (padding.class_id,)), valid)


# OpenCV where NumPy would do: NumPy needs ten times as long to fill or mirror pixels of 3 bytes


def _pad(pixels: npt.NDArray[Any], side: int, value: tuple[int, ...]) -> UInt8Array:
    """(h, w, ...) -> (side, side, ...), ``value`` below and to the right."""
    rows, columns = side - pixels.shape[0], side - pixels.shape[1]
    if not (rows or columns):
        return pixels.astype(np.uint8, copy=False)
    padded = cv2.copyMakeBorder(pixels, 0, rows, 0, columns, cv2.BORDER_CONSTANT, value=value)
    return padded.astype(np.uint8, copy=False)


def _mirror(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Left and right of (H, W, ...) exchanged."""
    return cv2.flip(pixels.view(np.uint8), 1).view(pixels.dtype)


def _window(length: int, side: int, scale: float) -> tuple[int, int]:
    """Source pixels that the crop needs along one axis, and the crop pixels that they become."""
    source = min(max(round(side / scale), 1), length)
    return source, min(max(round(source * scale), 1), side) if source == length else side


def _jitter_color(image: UInt8Array, amounts: npt.NDArray[np.float64]) -> UInt8Array:
    """Brightness, contrast and saturation by up to a factor 1 +- amount/2, hue by +- 18 degrees."""
    brightness, contrast, saturation, hue = (float(a) for a in amounts)
    levels = np.arange(256, dtype=np.float32)
    curve = (levels - 128) * (1 + 0.5 * contrast) + 128
    curve = np.clip(curve * (1 + 0.5 * brightness), 0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(cv2.LUT(image, curve), cv2.COLOR_RGB2HSV)
    # OpenCV keeps hue in steps of 2 degrees, 0 to 179
    hues = ((levels + round(hue * 9)) % 180).astype(np.uint8)
    saturations = np.clip(levels * (1 + 0.5 * saturation), 0, 255).astype(np.uint8)
    table = np.stack([hues, saturations, levels.astype(np.uint8)], axis=-1)[None]
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)


def crop_maps(
    maps: Tensor, size: tuple[int, int], view: View, side: int, stride: int = MAP_STRIDE
) -> Tensor:
    """Maps of a crop, from those of the whole image.

    Corners are aligned: the cells of a map, of the image as of the crop, are spread evenly from
    its first pixel to its last. Between cells it is bilinear; outside the image, which losses
    ignore, border values are repeated.

    Args:
        maps: (C, h, w) of an image.
        size: (H, W) of the image.
        view: part of the image that the crop shows.
        side: side of the crop in pixels.
        stride: pixels between two cells of the maps, and of the result.

    Returns:
        (C, s, s) with s = side / stride, rounded up.
    """
    cells = math.ceil(side / stride)
    rows = _places(side, cells, view.top, view.rows, view.content_rows, size[0])
    columns = _places(side, cells, view.left, view.columns, view.content_columns, size[1])
    if view.flipped:
        columns = columns.flip(0)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([x, y], dim=-1).float()
    return F.grid_sample(
        maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def _places(side: int, cells: int, start: int, source: int, content: int, length: int) -> Tensor:
    """Places of a crop's cells along one axis of the image: -1 its first pixel, 1 its last.

    Args:
        side: side of the crop in pixels.
        cells: number of cells of its maps.
        start: first pixel of the image that the crop shows.
        source: number of its pixels that the crop shows.
        content: pixels of the crop that they become.
        length: pixels of the image along this axis.
    """
    pixels = torch.linspace(0, side - 1, cells, dtype=torch.float64)
    # resizing an image takes pixels as squares; what gets aligned is their outer edges
    places = start + (pixels + 0.5) * source / content - 0.5
    return 2 * places / max(length - 1, 1) - 1
