"""Whether a network sees the images as it was trained: the right way scores better than wrong ones.

Labels that are a pixel off, or channels in another order, cost a network little enough to go
unnoticed in its score alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aicsd.data.augment import augment
from aicsd.data.protocol import SegDataset
from aicsd.data.settings import AugmentConfig
from aicsd.data.wrappers import spread
from aicsd.errors import UserError
from aicsd.evaluation.metrics import confusion_counts, metrics_from_confusion
from aicsd.images import UInt8Array
from aicsd.models import Segmenter, predict_ids

SHIFTS = (1, 2)
"""Pixels by which predictions are moved."""
MARGIN = max(SHIFTS)
DIRECTIONS = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}
AS_IT_IS = "as it is"
CROPS = "training crops"
SWAPPED = "channels swapped"


class Variant(NamedTuple):
    """A way to look at the images, and how well the labels fit then."""

    name: str
    miou: float
    is_wrong: bool
    """Whether a sound network must score lower this way."""


def alignment(
    model: Segmenter,
    dataset: SegDataset,
    images: int = 20,
    crop: int = 512,
    advance: Callable[[], None] | None = None,
) -> list[Variant]:
    """mIoU as it is, on crops as in training, moved by 1 and 2 pixels, and with channels swapped.

    Args:
        model: in evaluation mode; its classes are those of the dataset.
        dataset: images and labels.
        images: how many to look at, spread evenly over those with labels.
        crop: side in pixels of the training crops, which are scaled and mirrored at random.
        advance: called after each image.

    Raises:
        UserError: no image has labels, or one is too small to be moved.
    """
    labelled = list(dataset.labelled)
    if not labelled or images < 1:
        raise UserError("the check of a teacher needs 1 image with labels or more")
    count = len(dataset.classes.names)
    totals: dict[str, Tensor] = {}

    def add(name: str, predicted: UInt8Array, mask: UInt8Array) -> None:
        ids, labels = (torch.from_numpy(np.ascontiguousarray(part)) for part in (predicted, mask))
        counts = confusion_counts(ids[None], labels[None], count)
        totals[name] = totals[name] + counts if name in totals else counts

    config = AugmentConfig(crop=crop)
    for place in spread(min(images, len(labelled)), len(labelled)):
        index = labelled[place]
        sample = dataset.read(index)
        height, width = sample.mask.shape
        if min(height, width) <= 4 * MARGIN:
            raise UserError(f"{dataset.names[index]}: {width}x{height} is too small to be moved")
        inner = _inner(sample.mask, 0, 0)
        found = predict_ids(model, sample.image)
        add(AS_IT_IS, _inner(found, 0, 0), inner)
        for pixels in SHIFTS:
            for word, (down, right) in DIRECTIONS.items():
                moved = _inner(found, -pixels * down, -pixels * right)
                add(f"moved {word} by {pixels}", moved, inner)
        swapped = predict_ids(model, np.ascontiguousarray(sample.image[..., ::-1]))
        add(SWAPPED, _inner(swapped, 0, 0), inner)
        seen = augment(sample, np.random.default_rng(index), config)
        add(CROPS, predict_ids(model, seen.image), seen.mask)
        if advance is not None:
            advance()
    return [
        Variant(name, metrics_from_confusion(total, dataset.classes.names, images).miou,
                name not in (AS_IT_IS, CROPS))
        for name, total in totals.items()
    ]  # fmt: skip


def misalignments(variants: list[Variant]) -> list[str]:
    """A line for the best wrong way of each kind that scores better than the right one."""
    right = next(variant.miou for variant in variants if variant.name == AS_IT_IS)
    better = sorted(
        (variant for variant in variants if variant.is_wrong and variant.miou > right),
        key=lambda variant: -variant.miou,
    )
    moved = [variant for variant in better if variant.name != SWAPPED][:1]
    swapped = [variant for variant in better if variant.name == SWAPPED]
    cures = "are the labels those of these images, pixel by pixel, and is align_corners right?"
    return [
        *(f"the prediction {v.name} fits better than {AS_IT_IS} ({v.miou:.4f}, {right:.4f}): "
          f"{cures}" for v in moved),
        *(f"with {v.name} (BGR) the network scores better ({v.miou:.4f}, {right:.4f}): does it "
          "want its channels in the order that it gets?" for v in swapped),
    ]  # fmt: skip


def _inner(ids: UInt8Array, down: int, right: int) -> UInt8Array:
    """(H, W) without a margin, seen from (``down``, ``right``) further on."""
    height, width = ids.shape
    part: UInt8Array = ids[
        MARGIN + down : height - MARGIN + down, MARGIN + right : width - MARGIN + right
    ]
    return part
