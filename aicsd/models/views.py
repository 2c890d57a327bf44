"""Inference settings, and the views of an image: scaled, mirrored, cut into windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.models.maps import resize

if TYPE_CHECKING:
    from aicsd.models.segmenter import Segmenter

VIEWS_PER_PASS = 4
SMALLEST_SIDE = 32
"""Least side of a scaled image or a window, in pixels: the largest output stride."""
WHOLE_PIXELS = 2**24
"""Pixels of the largest image that is taken whole, 4096 x 4096, where no window is given."""
WINDOW = 1025
"""Side in pixels of the windows that a larger image is cut into."""
LARGEST_SCALE = 10
"""A scale of 75 is meant as percent, and would fill the memory."""


@dataclass(frozen=True)
class InferenceConfig:
    """Settings of inference: test-time augmentation and sliding window.

    Args:
        scales: sizes of the image relative to its own (test-time augmentation); class
            probabilities are averaged at its own size.
        flip: average with the horizontally flipped image too.
        window: side in pixels of the sliding window over a larger image; 0: as the network
            declares it, which for most means whole, or 1025 for an image of more than 4096 x 4096
            pixels, of which the maps would fill the memory.
        overlap: overlap of neighbouring windows, as a share of their side, 0 to below 1.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 0
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= LARGEST_SCALE for scale in self.scales):
            raise UserError(
                f"scales is {list(self.scales)}; it must be numbers above 0, at most "
                f"{LARGEST_SCALE}, such as 0.75,1.0,1.25"
            )
        if self.window and self.window < SMALLEST_SIDE:
            raise UserError(f"window is {self.window}; it must be {SMALLEST_SIDE} or more, or 0")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; it is 0 or more and below 1")

    def of(self, model: Segmenter, size: tuple[int, int]) -> InferenceConfig:
        """These settings with the window for an image (H, W), where none is given."""
        spec = model.input
        if self.window or (spec.size is not None and not spec.window):
            return self
        is_large = size[0] * size[1] * max(self.scales) ** 2 > WHOLE_PIXELS
        return replace(self, window=spec.window or (WINDOW if is_large else 0))


def scale_images(images: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H scale, W scale), rounded; uint8 as it is at scale 1, else float."""
    if scale == 1:
        return images
    size = [max(SMALLEST_SIDE, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=True)


def is_larger(images: Tensor, window: float) -> bool:
    """Whether windows of this side are cut; 0 cuts none."""
    return bool(window) and max(images.shape[-2:]) > window


def is_single_pass(images: Tensor, config: InferenceConfig) -> bool:
    """Whether one forward pass sees whole images at their own scale: nothing is averaged."""
    return config.scales == (1.0,) and not config.flip and not is_larger(images, config.window)


def view_probabilities(
    model: Segmenter, images: Tensor, config: InferenceConfig, batch_size: int
) -> Tensor:
    """(B, C, h, w) class probabilities at the size of ``images``.

    The mean of all views that see a pixel: windows, and each mirrored. The mirror of a view shares
    its forward pass where ``batch_size`` allows it.
    """
    height, width = images.shape[-2:]
    is_cut = is_larger(images, config.window)
    rows, columns = (min(side, config.window) if is_cut else side for side in (height, width))
    views = [
        ((..., slice(top, top + rows), slice(left, left + columns)), mirrored)
        for top in window_starts(height, rows, config.overlap)
        for left in window_starts(width, columns, config.overlap)
        for mirrored in ((False, True) if config.flip else (False,))
    ]
    total = torch.zeros(
        (len(images), len(model.classes.names), height, width), device=images.device
    )
    count = total.new_zeros((height, width))
    per_pass = max(1, batch_size // len(images))
    for start in range(0, len(views), per_pass):
        group = views[start : start + per_pass]
        seen = [images[area].flip(-1) if mirrored else images[area] for area, mirrored in group]
        logits = model(torch.cat(seen)).logits
        maps = resize(logits, (rows, columns), model.align_corners).softmax(dim=1)
        for (area, mirrored), view in zip(group, torch.split(maps, len(images)), strict=True):
            total[area] += view.flip(-1) if mirrored else view
            count[area] += 1
    return total.div_(count)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of windows that cover ``length``, evenly spread."""
    step = max(1, int(window * (1 - overlap)))
    more = -(-(length - window) // step)
    return [round(number * (length - window) / more) for number in range(more + 1)] if more else [0]
