"""Evaluation at the native resolution of the labels, or as the released code does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image as PILImage
from torch import Tensor

from aicsd.data.loaders import sample_loader
from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError
from aicsd.evaluation.boundary import boundary_counts
from aicsd.evaluation.calibration import (
    BINS,
    add_calibration,
    calibration_counts,
    predict_confidence,
)
from aicsd.evaluation.metrics import (
    Metrics,
    add_boundary,
    confusion_counts,
    metrics_from_confusion,
)
from aicsd.evaluation.per_image import ImageCounts
from aicsd.models import Segmenter
from aicsd.models.inference import InferenceConfig, image_batch, infer_or_cut, memory_for
from aicsd.models.maps import evaluating
from aicsd.types import EvaluationProtocol

WAITING_BATCHES = 4
"""Decoded images that wait for others of their size, in batches: bounds the memory."""
RELEASED_SHORT_SIDE = 513
"""Shorter side in pixels at which the released code scores."""


def evaluate(
    model: Segmenter,
    dataset: SegDataset,
    *,
    batch_size: int = 4,
    workers: int = 0,
    inference: InferenceConfig | None = None,
    short_side: int = 0,
    boundary: bool = False,
    calibration: bool = False,
    per_image: ImageCounts | None = None,
    advance: Callable[[int], None] | None = None,
    cut: Callable[[str], None] | None = None,
) -> Metrics:
    """Metrics of ``model`` on ``dataset``, every image at its own size.

    Args:
        model: its classes must be those of the dataset.
        dataset: images and labels.
        batch_size: images, or windows of an image, per forward pass; only images of equal size
            share one, so that it changes the speed alone.
        workers: processes that load images.
        inference: scales, mirroring, windows; a single pass over the whole image without it.
        short_side: resize image and labels so that the shorter side has that many pixels, as the
            released code does; 0 leaves both as they are.
        boundary: compute the boundary IoU too.
        calibration: compute the mean confidence and the expected calibration error too.
        per_image: gets the counts of every image.
        advance: called with the number of images after each forward pass.
        cut: called with a line before an image for which memory is too small is cut into windows;
            without it, or with ``calibration``, such an image is refused.

    In a distributed run each process takes its share and all return the metrics of the whole.

    Raises:
        UserError: classes that differ, a file that cannot be read, or a number out of range.
    """
    _check(model, dataset, batch_size, workers, short_side)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = model.device
    num_classes = len(model.classes.names)
    confusion = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
    borders = torch.zeros((2, num_classes), dtype=torch.int64)
    bins = torch.zeros((3, BINS), dtype=torch.float64)
    with evaluating(model):
        samples = (
            (index, resize_short_side(sample, short_side) if short_side else sample)
            for index, sample in sample_loader(dataset, workers, rank, world)
        )
        for indexed in batches_of_equal_size(samples, batch_size):
            batch = [sample for _, sample in indexed]
            height, width = batch[0].mask.shape
            with memory_for(len(batch), (height, width)):
                images = image_batch([sample.image for sample in batch], device)
                masks = torch.from_numpy(np.stack([sample.mask for sample in batch])).to(device)
                if calibration:
                    predicted, sure = predict_confidence(model, images, inference, batch_size)
                    bins += calibration_counts(predicted, sure, masks, num_classes)
                else:
                    predicted = infer_or_cut(model, images, inference, batch_size, cut)
                for (index, _), ids, mask in zip(indexed, predicted, masks, strict=True):
                    counts = confusion_counts(ids, mask, num_classes)
                    confusion += counts
                    if per_image is not None:
                        per_image.add(index, counts)
                if boundary:
                    for ids, sample in zip(predicted.cpu().numpy(), batch, strict=True):
                        found = boundary_counts(ids, sample.mask, num_classes)
                        borders += torch.from_numpy(found)
            if advance is not None:
                advance(len(batch))
    if per_image is not None:
        per_image.gather()
    metrics = metrics_from_confusion(
        _over_ranks(confusion, device), model.classes.names, len(dataset)
    )
    if boundary:
        metrics = add_boundary(metrics, _over_ranks(borders, device))
    if calibration:
        metrics = add_calibration(metrics, _over_ranks(bins, device))
    return metrics


def _check(
    model: Segmenter, dataset: SegDataset, batch_size: int, workers: int, short_side: int
) -> None:
    if batch_size < 1 or workers < 0:
        raise UserError(
            f"batch_size is {batch_size} and workers is {workers}; they must be at least 1 and 0"
        )
    if short_side < 0:
        raise UserError(f"short_side is {short_side}; it must be 0 or more")
    if model.classes.names != dataset.classes.names:
        raise UserError(
            f"the model was trained on the classes {list(model.classes.names)} but the dataset has "
            f"{list(dataset.classes.names)}: give --teacher_classes MAP.yaml, which turns the ones "
            "into the others"
        )


def _over_ranks(counts: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes, which have the device to exchange it on; on the CPU."""
    if dist.is_initialized():
        counts = counts.to(device)
        dist.all_reduce(counts)
    return counts.cpu()


def short_side_of(protocol: EvaluationProtocol, given: int | None) -> int:
    """Shorter side in pixels to evaluate at: ``given``, else that of ``protocol``; 0 = native.

    Raises:
        UserError: fewer than 1 pixel.
    """
    if given is None:
        return RELEASED_SHORT_SIDE if protocol == "released" else 0
    if given < 1:
        raise UserError(f"short_side is {given}; it must be 1 or more")
    return given


def resize_short_side(sample: Sample, short_side: int) -> Sample:
    """Image (bilinear) and labels (nearest) with a shorter side of ``short_side`` pixels.

    With Pillow, whose bilinear filter averages when it shrinks: the released code uses it.
    """
    height, width = sample.mask.shape
    size = (
        (short_side, int(height * short_side / width))
        if width < height
        else (int(width * short_side / height), short_side)
    )
    image = PILImage.fromarray(sample.image).resize(size, PILImage.Resampling.BILINEAR)
    mask = PILImage.fromarray(sample.mask).resize(size, PILImage.Resampling.NEAREST)
    return Sample(np.array(image), np.array(mask))


def batches_of_equal_size(
    samples: Iterator[tuple[int, Sample]], batch_size: int
) -> Iterator[list[tuple[int, Sample]]]:
    """Group numbered samples of one image size, ``batch_size`` at most; every sample once."""
    waiting: dict[tuple[int, ...], list[tuple[int, Sample]]] = {}
    for index, sample in samples:
        group = waiting.setdefault(sample.image.shape, [])
        group.append((index, sample))
        if len(group) == batch_size:
            yield waiting.pop(sample.image.shape)
        elif sum(map(len, waiting.values())) >= WAITING_BATCHES * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
