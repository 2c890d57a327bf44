"""Class ids and probabilities of decoded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aicsd.images import UInt8Array
from aicsd.models import Segmenter
from aicsd.models.bands import class_probabilities, has_bands, probability_bands
from aicsd.models.inference import image_batch, infer, memory_for
from aicsd.prediction.settings import PredictConfig

Float16Array = npt.NDArray[np.float16]


class Prediction(NamedTuple):
    """The prediction for one image."""

    ids: UInt8Array
    """(H, W) class ids."""
    probabilities: Float16Array | None
    """(C, H, W); None if not requested."""


def predict_images(
    model: Segmenter,
    images: Sequence[UInt8Array],
    config: PredictConfig,
    probabilities: bool = False,
) -> list[Prediction]:
    """Predict images of equal size in one forward pass.

    Args:
        model: in evaluation mode; called on (B, 3, H, W) uint8 images.
        images: (H, W, 3) uint8 RGB each.
        config: inference settings and the device.
        probabilities: whether to return probabilities too.

    Raises:
        NotEnoughMemoryError: there is not enough memory.
    """
    height, width = images[0].shape[:2]
    config = replace(config, inference=config.inference.of(model, (height, width)))
    with memory_for(len(images), (height, width)):
        batch = image_batch(images, config.device)
        if config.inference.window and max(batch.shape[-2:]) > config.inference.window:
            return [_predict_large(model, image[None], config, probabilities) for image in batch]
        return _predict_whole(model, batch, config, probabilities)


def _predict_whole(
    model: Segmenter, batch: Tensor, config: PredictConfig, probabilities: bool
) -> list[Prediction]:
    if not probabilities:
        return [Prediction(ids, None) for ids in _to_ids(infer(model, batch, config.inference))]
    maps = class_probabilities(model, batch, config.inference)
    # rounded to 16 bits, classes that differ could be equal: the ids come before
    halves: Float16Array = maps.half().cpu().numpy()
    return [Prediction(*pair) for pair in zip(_to_ids(maps.argmax(dim=1)), halves, strict=True)]


def _predict_large(
    model: Segmenter, image: Tensor, config: PredictConfig, probabilities: bool
) -> Prediction:
    """Predict (1, 3, H, W) with no more floats in memory than the rows of one window need."""
    height, width = image.shape[-2:]
    if not has_bands(height, config.inference):
        return _predict_whole(model, image, config, probabilities)[0]
    ids = np.empty((height, width), np.uint8)
    shape = (len(model.classes.names), height, width)
    halves = np.empty(shape, np.float16) if probabilities else None
    for top, maps in probability_bands(model, image, config.inference):
        bottom = top + maps.shape[2]
        ids[top:bottom] = _to_ids(maps.argmax(dim=1))[0]
        if halves is not None:
            halves[:, top:bottom] = maps[0].half().cpu().numpy()
    return Prediction(ids, halves)


def _to_ids(labels: Tensor) -> UInt8Array:
    ids: UInt8Array = labels.to(torch.uint8).cpu().numpy()
    return ids
