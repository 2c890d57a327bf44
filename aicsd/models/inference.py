"""Inference: class ids of images, by a single pass, test-time augmentation or sliding window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aicsd.errors import NotEnoughMemoryError, UserError, enough_memory
from aicsd.images import UInt8Array
from aicsd.models.bands import has_bands, probability_bands, summed_probabilities
from aicsd.models.freed_memory import FreedMemory
from aicsd.models.maps import class_ids, evaluating
from aicsd.models.views import (
    VIEWS_PER_PASS,
    WHOLE_PIXELS,
    WINDOW,
    InferenceConfig,
    is_larger,
    is_single_pass,
    window_starts,
)

if TYPE_CHECKING:
    from aicsd.models.segmenter import Segmenter

__all__ = [
    "InferenceConfig",
    "NotEnoughMemoryError",
    "image_batch",
    "infer",
    "infer_or_cut",
    "memory_for",
    "predict_ids",
    "window_starts",
]


_FREED = FreedMemory()  # one, as the process has one heap


@contextmanager
def memory_for(count: int, size: tuple[int, int]) -> Iterator[None]:
    """Turn errors of too little memory into one line; give back what is freed.

    Args:
        count: images that are predicted at once.
        size: (H, W) of each.

    Raises:
        NotEnoughMemoryError: there is not enough.
    """
    with enough_memory(
        f"for {count} x {size[1]}x{size[0]} pixels at once; lower the batch size, or cut large "
        f"images with --window {WINDOW}, or less"
    ):
        yield
    _FREED.after((count, *size))


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
    height, width = images.shape[-2:]
    config = (config or InferenceConfig()).of(model, (height, width))
    if len(images) > 1 and is_larger(images, config.window / max(config.scales)):
        return torch.cat([infer(model, image[None], config, batch_size) for image in images])
    if is_single_pass(images, config):
        return class_ids(model(images).logits, (height, width), model.align_corners)
    if height * width > WHOLE_PIXELS and has_bands(height, config):
        bands = probability_bands(model, images, config, batch_size)
        return torch.cat([maps.max(dim=1).indices for _, maps in bands], dim=1)
    return summed_probabilities(model, images, config, batch_size).max(dim=1).indices


def infer_or_cut(
    model: Segmenter,
    images: Tensor,
    config: InferenceConfig | None,
    batch_size: int,
    cut: Callable[[str], None] | None,
) -> Tensor:
    """:func:`infer`, image by image where memory is too small for all.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) uint8 RGB on the model's device.
        config: as for :func:`infer`.
        batch_size: as for :func:`infer`.
        cut: called with a line before an image for which memory is too small is cut into windows;
            without it such an image is refused.

    Raises:
        NotEnoughMemoryError: memory is too small for one image, which is not to be cut.
        UserError: it is too small for windows, too.
    """
    height, width = images.shape[-2:]
    try:
        with memory_for(len(images), (height, width)):
            return infer(model, images, config, batch_size)
    except NotEnoughMemoryError:
        if len(images) == 1 and cut is None:
            raise
    # outside of the handler, whose traceback holds the maps of the failed pass
    if len(images) > 1:
        parts = [infer_or_cut(model, image[None], config, 1, cut) for image in images]
        return torch.cat(parts)
    assert cut is not None
    cut(f"not enough memory for {width}x{height} pixels at once: windows of {WINDOW}, one by one")
    windows = replace(config or InferenceConfig(), window=WINDOW)
    try:
        with memory_for(1, (height, width)):
            return infer(model, images, windows, 1)
    except NotEnoughMemoryError as error:
        raise UserError(
            f"not enough memory for an image of {width}x{height} pixels, not even in windows of "
            f"{WINDOW}: leave it out, or make it smaller"
        ) from error


def image_batch(images: Sequence[UInt8Array], device: torch.device | str) -> Tensor:
    """Images (H, W, 3) uint8 RGB of one size -> (B, 3, H, W) uint8 on ``device``."""
    # stacked and thus copied: an array from PIL is read-only, and torch warns of that
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)


def predict_ids(
    model: Segmenter,
    image: UInt8Array,
    config: InferenceConfig | None = None,
    cut: Callable[[str], None] | None = None,
) -> UInt8Array:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 class ids; arguments and errors of ``infer_or_cut``."""
    with evaluating(model):
        images = image_batch([image], model.device)
        labels = infer_or_cut(model, images, config, VIEWS_PER_PASS, cut)
    ids: UInt8Array = labels[0].to(torch.uint8).cpu().numpy()
    return ids
