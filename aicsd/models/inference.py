"""From images to class ids: single pass, several scales, mirrored, or in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.images import UInt8Array
from aicsd.models.maps import class_ids, evaluating, resize

if TYPE_CHECKING:
    from aicsd.models.segmenter import Segmenter

VIEWS_PER_PASS = 4
SMALLEST_SIDE = 32
"""Least side of a scaled image or a window, in pixels: the largest output stride."""
LARGEST_SCALE = 10
"""A scale of 75 is meant as percent, and would fill the memory."""


@dataclass(frozen=True)
class InferenceConfig:
    """How an image becomes a prediction.

    Args:
        scales: sizes of the image relative to its own (test-time augmentation); class
            probabilities are averaged at its own size.
        flip: average with the horizontally flipped image too.
        window: side in pixels of the sliding window over a larger image; 0: as the network
            declares it, which for most means whole.
        overlap: of neighbouring windows, as a part of their side, 0 to below 1.
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

    def of(self, model: Segmenter) -> InferenceConfig:
        """These settings with the window that ``model`` declares, where none is given."""
        return self if self.window else replace(self, window=model.input.window)


@torch.no_grad()
def infer(
    model: Segmenter,
    images: Tensor,
    config: InferenceConfig | None = None,
    batch_size: int = VIEWS_PER_PASS,
) -> Tensor:
    """Class ids of images.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) uint8 RGB on the model's device.
        config: single scale, not mirrored and whole without it.
        batch_size: views of an image (mirrored, windows) that share a forward pass; fewer need
            less memory. A pass never has fewer than B.

    Returns:
        (B, H, W) int64. Without averaging, the arg max of the logits resized to (H, W); else of
        the mean of the class probabilities there. Images that are cut into windows are taken one
        by one, so that neither memory nor result depends on B.
    """
    config = (config or InferenceConfig()).of(model)
    height, width = images.shape[-2:]
    if len(images) > 1 and _is_larger(images, config.window / max(config.scales)):
        return torch.cat([infer(model, image[None], config, batch_size) for image in images])
    if config.scales == (1.0,) and not config.flip and not _is_larger(images, config.window):
        return class_ids(model(images).logits, (height, width), model.align_corners)
    total: Tensor | None = None
    for scale in config.scales:
        maps = view_probabilities(model, scale_images(images, scale), config, batch_size)
        maps = resize(maps, (height, width), align_corners=True)  # as scale_images has it
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total.max(dim=1).indices


def image_batch(images: Sequence[UInt8Array], device: torch.device | str) -> Tensor:
    """Images (H, W, 3) uint8 RGB of one size -> (B, 3, H, W) uint8 on ``device``."""
    # stacked, and hence copied: an array from PIL is read-only, and torch warns of that
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)


def predict_ids(
    model: Segmenter, image: UInt8Array, config: InferenceConfig | None = None
) -> UInt8Array:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 class ids."""
    with evaluating(model):
        labels = infer(model, image_batch([image], model.device), config)
    ids: UInt8Array = labels[0].to(torch.uint8).cpu().numpy()
    return ids


def scale_images(images: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H scale, W scale), rounded; uint8 as it is at scale 1, else float."""
    if scale == 1:
        return images
    size = [max(SMALLEST_SIDE, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=True)


def _is_larger(images: Tensor, window: float) -> bool:
    return bool(window) and max(images.shape[-2:]) > window


def view_probabilities(
    model: Segmenter, images: Tensor, config: InferenceConfig, batch_size: int
) -> Tensor:
    """(B, C, h, w) class probabilities at the size of ``images``.

    The mean of all views that see a pixel: windows, and each mirrored. The mirror of a view shares
    its forward pass where ``batch_size`` allows it.
    """
    height, width = images.shape[-2:]
    is_cut = _is_larger(images, config.window)
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
    """Where windows begin, so that they cover ``length``, evenly spread."""
    step = max(1, int(window * (1 - overlap)))
    more = -(-(length - window) // step)
    return [round(number * (length - window) / more) for number in range(more + 1)] if more else [0]
