"""Logits of a teacher on crops, computed live and read from its cache.

    python scripts/cached_teacher.py --teacher RUN --teacher_cache DIR --config CONFIG --root DATA

prints, for crops at several scales with the colour jitter and blur of the config: the cross entropy
of the teacher's answers with the labels, live and cached, the divergence KL(live || cached) in
nats, and at how many pixels both name the same class. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from configs import read_settings
from torch import Tensor

from aicsd.data import open_dataset
from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import train_loader
from aicsd.data.wrappers import Subset
from aicsd.models import load_model, resize
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.types import IGNORE_INDEX, Batch

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


@torch.no_grad()
def compare(teacher: Teacher, batches: Iterable[Batch]) -> tuple[float, float, float, float]:
    """Mean cross entropy live and cached, KL(live || cached), and part of equal classes."""
    rows: list[Tensor] = []
    for batch in batches:
        assert batch.teacher_logits is not None
        size = (batch.mask.shape[1], batch.mask.shape[2])
        live, cached = (
            resize(teacher(batch.image).logits, size, teacher.model.align_corners),
            resize(batch.teacher_logits, size, align_corners=True),
        )
        entropies = [
            F.cross_entropy(maps, batch.mask.long(), ignore_index=IGNORE_INDEX)
            for maps in (live, cached)
        ]
        divergence = F.kl_div(
            cached.log_softmax(1), live.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        same = live.argmax(1) == cached.argmax(1)
        rows.append(
            torch.stack(
                [*entropies, divergence[batch.valid].mean(), same[batch.valid].float().mean()]
            )
        )
    means = torch.stack(rows).mean(0).tolist()
    return means[0], means[1], means[2], means[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher_cache", type=Path, required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", help="folder of the dataset, where the config does not name it")
    parser.add_argument("--images", type=int, default=48)
    options = parser.parse_args()
    data = read_settings(options.config, options.root).data
    dataset = open_dataset(data.name, data.root, data.train_split, data.options)
    teacher = Teacher(load_model(options.teacher), dataset.classes)
    cache = TeacherCache(options.teacher_cache, 0)
    images = Subset(dataset, min(options.images, len(dataset)))
    taught = cache.attach(images, teacher, data.workers)
    plan = TrainBatches(len(taught), data.batch_size, 0, 0, len(taught) // data.batch_size)
    print("| scale | cross entropy, live | cached | KL(live, cached) | same class % |")
    print("| --- | --- | --- | --- | --- |")
    for scale in SCALES:
        augment = replace(data.augment, scale_min=scale, scale_max=scale)
        batches = train_loader(taught, replace(data, augment=augment), plan)
        live, cached, divergence, same = compare(teacher, batches)
        print(f"| {scale} | {live:.3f} | {cached:.3f} | {divergence:.3f} | {100 * same:.1f} |")


if __name__ == "__main__":
    main()
