"""Predictions and inter-class similarity of a network on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.data.protocol import Sample, SegDataset
from aicsd.images import UInt8Array
from aicsd.losses import ics_matrix
from aicsd.models import Segmenter, class_ids, predict_ids
from aicsd.models.inference import NotEnoughMemoryError, memory_for
from aicsd.models.views import SMALLEST_SIDE, WHOLE_PIXELS
from aicsd.types import IGNORE_INDEX

FloatArray = npt.NDArray[np.float64]
RIGHT, WRONG, UNLABELLED = 0, 1, 2
ERROR_PALETTE = ((236, 236, 236), (213, 94, 0), (255, 255, 255))
"""Right: light grey; wrong: vermilion of the Okabe-Ito palette; no label: white."""


class Views(NamedTuple):
    """Predictions and mean ICS matrix of one network."""

    masks: list[UInt8Array]
    """(H, W) class ids of each image at its size."""
    ics: FloatArray
    """(C, C) mean over the images of the ICS matrices at the network's own resolution."""


def shown_indices(dataset: SegDataset, count: int) -> list[int]:
    """Indices of ``count`` samples, or of all if there are fewer, spread evenly."""
    count = min(count, len(dataset))
    return [(2 * number + 1) * len(dataset) // (2 * count) for number in range(count)]


def predict_views(model: Segmenter, samples: Sequence[Sample]) -> Views:
    """Predictions and the mean ICS matrix of ``model`` on ``samples``, one pass an image.

    An image of more than 4096 x 4096 pixels, or for which memory is too small, is predicted in half
    its size, or less.

    Raises:
        NotEnoughMemoryError: memory is too small even for a side of ``SMALLEST_SIDE`` pixels.
    """
    found = [_view(model, sample.image) for sample in samples]
    mean = torch.stack([ics for _, ics in found]).mean(dim=0)
    return Views([ids for ids, _ in found], mean.numpy())


@torch.inference_mode()
def _view(model: Segmenter, image: UInt8Array) -> tuple[UInt8Array, Tensor]:
    """(H, W) class ids of one image, and its (C, C) ICS matrix."""
    height, width = size = (image.shape[0], image.shape[1])
    is_small = min(size) < 2 * SMALLEST_SIDE
    if height * width <= WHOLE_PIXELS or is_small:
        try:
            with memory_for(1, size):
                ids, logits = ids_and_logits(model, image)
                return ids, ics_matrix(logits)[0].double().cpu()
        except NotEnoughMemoryError:
            if is_small:
                raise
    half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    ids, ics = _view(model, half.astype(np.uint8, copy=False))
    whole = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST)
    return whole.astype(np.uint8, copy=False), ics


def picture_ids(model: Segmenter, image: UInt8Array) -> UInt8Array:
    """(H, W) class ids for a picture: in windows where memory is too small."""
    return predict_ids(model, image, cut=lambda _: None)


def ids_and_logits(model: Segmenter, image: UInt8Array) -> tuple[UInt8Array, Tensor]:
    """(H, W, 3) uint8 RGB -> (H, W) class ids, and the (1, C, h, w) logits that they come from."""
    logits = model.image_output(image).logits
    labels = class_ids(logits, (image.shape[0], image.shape[1]), model.align_corners)
    return labels[0].to(torch.uint8).cpu().numpy(), logits


def error_map(mask: UInt8Array, prediction: UInt8Array) -> UInt8Array:
    """(H, W) labels and class ids -> (H, W) ids into ``ERROR_PALETTE``."""
    errors = np.where(mask == prediction, RIGHT, WRONG)
    errors[mask == IGNORE_INDEX] = UNLABELLED
    ids: UInt8Array = errors.astype(np.uint8)
    return ids


def unit_rows(matrix: FloatArray) -> FloatArray:
    """(C, C) with every row at L2 norm 1, as the ICSD loss compares it by default."""
    rows: FloatArray = F.normalize(torch.from_numpy(matrix), dim=1).numpy()
    return rows


def ics_distance(student: FloatArray, teacher: FloatArray) -> float:
    """L_ICS of two (C, C) matrices: mean squared difference of :func:`unit_rows`."""
    return float(np.square(unit_rows(student) - unit_rows(teacher)).mean())
