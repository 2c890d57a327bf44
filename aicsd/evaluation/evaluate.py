"""Evaluation at the native resolution of the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torchmetrics.classification import MulticlassConfusionMatrix

from aicsd.data.base import Sample, SegDataset
from aicsd.data.loaders import sample_loader
from aicsd.errors import UserError
from aicsd.evaluation.metrics import Metrics, metrics_from_confusion
from aicsd.models import Segmenter, resize
from aicsd.types import IGNORE_INDEX


@torch.no_grad()
def evaluate(
    model: Segmenter,
    dataset: SegDataset,
    *,
    batch_size: int = 4,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Metrics:
    """Metrics of ``model`` on ``dataset``; every image at its own size, none resized.

    Args:
        model: its classes must be those of the dataset.
        dataset: images and labels.
        batch_size: images per forward pass; only images of equal size share one, so that it
            changes the speed alone.
        workers: processes that load images.
        advance: called with the number of images after each forward pass.

    In a distributed run each process takes its share and all return the metrics of the whole.

    Raises:
        UserError: classes that differ, a file that cannot be read, or a number out of range.
    """
    if batch_size < 1 or workers < 0:
        raise UserError(
            f"batch_size is {batch_size} and workers is {workers}; they must be at least 1 and 0"
        )
    if model.classes.names != dataset.classes.names:
        raise UserError(
            f"the model was trained on the classes {list(model.classes.names)} but the dataset has "
            f"{list(dataset.classes.names)}"
        )
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = model.mean.device
    confusion = MulticlassConfusionMatrix(
        len(model.classes.names), ignore_index=IGNORE_INDEX, validate_args=False
    ).to(device)
    was_training = model.training
    model.eval()
    try:
        samples = (sample for _, sample in sample_loader(dataset, workers, rank, world))
        for batch in batches_of_equal_size(samples, batch_size):
            images = torch.from_numpy(np.stack([sample.image for sample in batch]))
            masks = torch.from_numpy(np.stack([sample.mask for sample in batch]))
            logits = model(images.permute(0, 3, 1, 2).to(device)).logits
            predicted = resize(logits, (masks.shape[1], masks.shape[2])).argmax(dim=1)
            confusion.update(predicted, masks.to(device).long())
            if advance is not None:
                advance(len(batch))
    finally:
        model.train(was_training)
    return metrics_from_confusion(confusion.compute().cpu(), model.classes.names, len(dataset))


def batches_of_equal_size(samples: Iterator[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Group samples of one image size, ``batch_size`` at most; every sample once."""
    waiting: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        group = waiting.setdefault(sample.image.shape, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(sample.image.shape)
    yield from waiting.values()
