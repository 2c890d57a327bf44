"""Whether a network sees the images as it was trained: the right way scores better than wrong ones.

Labels that are a pixel off, channels in another order, or another mean and std cost a network
little enough to go unnoticed in its score alone.
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
from aicsd.models import InputSpec, Segmenter, predict_ids
from aicsd.models.input_spec import IMAGENET

SHIFTS = (1, 2)
"""Pixels by which predictions are moved."""
MARGIN = max(SHIFTS)
DIRECTIONS = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}
AS_IT_IS = "as it is"
CROPS = "training crops"
SWAPPED = "channels swapped"
NORMALIZATIONS = {
    "ImageNet's mean and std": IMAGENET,
    "mean and std 0.5": InputSpec((0.5,) * 3, (0.5,) * 3),
    "pixels of 0 to 1": InputSpec((0.0,) * 3, (1.0,) * 3),
}
"""Usual normalisations of trained networks."""
SAME = 0.1
"""Two normalisations that map no pixel further apart are one, as half of ImageNet's are."""
CLEAR = 0.005
"""Gain in mIoU from which a wrong way is worth a warning in a training."""


class Variant(NamedTuple):
    """A variant of the input, and the fit of its predictions to the labels."""

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
    """mIoU as it is, on crops as in training, and in wrong ways.

    Wrong are predictions moved by 1 and 2 pixels, swapped channels, and other normalisations.

    Args:
        model: in evaluation mode; its classes are those of the dataset.
        dataset: images and labels.
        images: number of images, spread evenly over those with labels.
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

    config, others = AugmentConfig(crop=crop), _otherwise_normalized(model)
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
        for name, other in others.items():
            add(name, _inner(predict_ids(other, sample.image), 0, 0), inner)
        seen = augment(sample, np.random.default_rng(index), config)
        add(CROPS, predict_ids(model, seen.image), seen.mask)
        if advance is not None:
            advance()
    return [
        Variant(
            name,
            metrics_from_confusion(total, dataset.classes.names, images).miou,
            name not in (AS_IT_IS, CROPS),
        )
        for name, total in totals.items()
    ]


def misalignment(variants: list[Variant], gain: float = 0.0) -> str | None:
    """A line for the best wrong way, if it scores better than the right one.

    Args:
        variants: as :func:`alignment` returns them.
        gain: mIoU by which it must be better.
    """
    right = next(variant.miou for variant in variants if variant.name == AS_IT_IS)
    best = max((v for v in variants if v.is_wrong), key=lambda variant: variant.miou)
    if not best.miou > right + gain:
        return None
    scores = f"({best.miou:.4f}, {right:.4f})"
    if best.name == SWAPPED:
        return (
            f"with {best.name} (BGR) the network scores better {scores}: does it want its channels "
            "in the order that it gets?"
        )
    if best.name in NORMALIZATIONS:
        return f"with {best.name} the network scores better {scores}: is its normalisation right?"
    return (
        f"the prediction {best.name} fits better than {AS_IT_IS} {scores}: are the labels those of "
        "these images, pixel by pixel, and is align_corners right?"
    )


def _otherwise_normalized(model: Segmenter) -> dict[str, Segmenter]:
    """The network with every common normalisation that is not its own.

    None of one that normalises by itself.
    """
    own = model.input
    if own.scale == 1 and not any(own.mean):
        return {}
    return {
        name: model.with_input(own._replace(mean=spec.mean, std=spec.std, scale=spec.scale)).eval()
        for name, spec in NORMALIZATIONS.items()
        if _distance(own, spec) > SAME
    }


def _distance(one: InputSpec, other: InputSpec) -> float:
    """Largest difference between the values that two specs give black or white."""
    return max(
        abs((pixel * one.scale - a) / b - (pixel * other.scale - c) / d)
        for pixel in (0, 255)
        for a, b, c, d in zip(one.mean, one.std, other.mean, other.std, strict=True)
    )


def _inner(ids: UInt8Array, down: int, right: int) -> UInt8Array:
    """(H, W) without a margin, seen from (``down``, ``right``) further on."""
    height, width = ids.shape
    part: UInt8Array = ids[
        MARGIN + down : height - MARGIN + down, MARGIN + right : width - MARGIN + right
    ]
    return part
