"""Deterministic, resumable loaders.

A training sample's augmentation depends on (seed, epoch, index) only, so the stream of batches is
the same for any number of workers and after any resume.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from aicsd.data.base import PartlyLabelled, Sample, SegDataset, Subset
from aicsd.data.transforms import AugmentConfig, Crop, Padding, augment, padding_of
from aicsd.errors import UserError
from aicsd.types import Batch, Protocol

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are fed.

    Args:
        name: dataset: digits (built in), voc, cityscapes, camvid or folder (your own).
        root: folder that holds the dataset; not needed for digits.
        train_split: split to train on.
        train_images: how many of its images to train on, spread evenly over the split; 0 takes
            all. Shows what few labels are worth.
        unlabelled_rest: train on the other images of the split too, without their labels: a
            teacher has an opinion on them.
        labelled_repeat: times that an epoch shows each image that has labels, where others have
            none; with 8, 50 labels are half of what the student sees beside 400 images without.
        val_split: split to validate on during training.
        batch_size: images per step and process; DeepLabV3+ needs 2 or more.
        workers: processes that load images; 0 loads in the training process. The result is the
            same for any number.
        cache_mb: memory in MB (10^6 bytes) for decoded training images, per device and shared by
            its workers; 0 decodes every image each time. The result is the same for any number.
        check: before training, make sure that every mask has valid ids and its image's size.
        options: further options of the dataset, for example {size: 96} for digits, or
            {sbd: FOLDER} for the split trainaug of voc.
        augment: random changes of the training images.
    """

    name: str = "digits"
    root: str | None = None
    train_split: str = "train"
    train_images: int = 0
    unlabelled_rest: bool = False
    labelled_repeat: int = 1
    val_split: str = "val"
    batch_size: int = 8
    workers: int = 2
    cache_mb: int = 0
    check: bool = True
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size is {self.batch_size}; it must be 1 or more")
        if self.train_images < 0:
            raise UserError(f"data.train_images is {self.train_images}; it must be 0 or more")
        if self.labelled_repeat < 1:
            raise UserError(f"data.labelled_repeat is {self.labelled_repeat}; it must be 1 or more")
        if self.unlabelled_rest and not self.train_images:
            raise UserError(
                "data.unlabelled_rest needs data.train_images, the number of images with labels"
            )
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}; it must be 0 or more")
        if self.cache_mb < 0:
            raise UserError(f"data.cache_mb is {self.cache_mb}; it must be 0 or more")


def training_images(dataset: SegDataset, config: DataConfig) -> SegDataset:
    """The part of a split that ``config`` trains on, with the labels that it may use."""
    if not config.train_images:
        return dataset
    part = PartlyLabelled if config.unlabelled_rest else Subset
    return part(dataset, config.train_images)


def epoch_indices(dataset: SegDataset, config: DataConfig) -> list[int]:
    """What an epoch shows: each sample once, those with labels ``labelled_repeat`` times."""
    repeated = list(dataset.labelled) * (config.labelled_repeat - 1)
    return [*range(len(dataset)), *repeated]


class _Fallible(TorchDataset[Any]):
    """Hands a UserError of a worker over as a value, so that it arrives as the one line it is."""

    def __init__(self, load: Any) -> None:
        self.load = load

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.load(key)
        except UserError as error:
            return error


@dataclass(frozen=True)
class _Augmented:
    dataset: SegDataset
    config: AugmentConfig
    seed: int
    padding: Padding
    indices: list[int]
    """Of the dataset, by the number of a sample in the epoch."""

    def __call__(self, key: tuple[int, int]) -> Crop:
        sample = self.dataset.read(self.indices[key[1]])
        rng = np.random.default_rng((self.seed, *key))
        return augment(sample, rng, self.config, self.padding)


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which epoch ``epoch`` visits ``count`` samples."""
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return order


@dataclass(frozen=True)
class TrainBatches:
    """Keys of every batch from ``start`` to ``stop``, for one of ``world`` ranks.

    A key is an epoch and a number in it, of the ``count`` samples that it shows.

    An epoch has ``count // (batch_size * world)`` batches of equal size; which samples are left
    over changes with the epoch's order.
    """

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1

    @property
    def per_epoch(self) -> int:
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        last_epoch = -1
        order: list[int] = []
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != last_epoch:
                order, last_epoch = epoch_order(self.seed, epoch, self.count), epoch
            begin = (position * self.world + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size]]

    def __len__(self) -> int:
        return self.stop - self.start


def plan_batches(
    count: int,
    config: DataConfig,
    seed: int,
    epochs: int,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
) -> TrainBatches:
    """The batches of a whole run over ``count`` images, in whole steps of ``accumulate`` batches.

    Raises:
        UserError: not enough images for one batch on every device, or for one step.
    """
    plan = TrainBatches(count, config.batch_size, seed, 0, 0, rank, world)
    if plan.per_epoch < 1:
        raise UserError(
            f"{count} training images make no batch of {config.batch_size} on each of {world} "
            "devices; lower data.batch_size"
        )
    steps = epochs * plan.per_epoch // accumulate
    if steps < 1:
        raise UserError(
            f"{epochs} epochs of {plan.per_epoch} batches make no step of optimizer.accumulate = "
            f"{accumulate} batches; lower it or train longer"
        )
    return replace(plan, stop=steps * accumulate)


def _collate_crops(crops: list[Crop | UserError]) -> Batch | UserError:
    for crop in crops:
        if isinstance(crop, UserError):
            return crop
    images, masks, valid, maps = zip(*crops, strict=True)
    return Batch(
        # a permuted view: the channels-last layout that convolutions like best, without a copy
        image=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        mask=torch.from_numpy(np.stack(masks)),
        valid=torch.from_numpy(np.stack(valid)),
        teacher_logits=None if maps[0] is None else torch.stack(maps),
    )


def _raise_errors(items: Iterator[T | UserError]) -> Iterator[T]:
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        if hasattr(items, "_shutdown_workers"):  # now, and not when the traceback is forgotten
            items._shutdown_workers()


def _loader(dataset: _Fallible, workers: int, **arguments: Any) -> DataLoader[Any]:
    # a generator of its own: the loader would otherwise draw from the generator of the dropout
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset,
        num_workers=workers,
        generator=generator,
        worker_init_fn=_init_worker if workers else None,
        **arguments,
    )


def _init_worker(_: int) -> None:
    # the training process decides when to stop, and ends its workers; a Ctrl-C or a SIGTERM to the
    # group reaches all of them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_word_of_parent, daemon=True).start()
    cv2.setNumThreads(0)


def _end_at_word_of_parent() -> None:
    # a worker deaf to all SIGTERM would hang the exit of a process that left a loop early
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Waiting(Iterator[T]):
    """An iterator that adds up the seconds spent waiting for its items."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self._seconds = items, 0.0

    def __next__(self) -> T:
        begin = time.monotonic()
        item = next(self._items)
        self._seconds += time.monotonic() - begin
        return item

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def timed(items: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Every item with the seconds that were spent waiting for it."""
    while True:
        begin = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.monotonic() - begin


def train_loader(
    dataset: SegDataset,
    config: DataConfig,
    batches: TrainBatches,
    pin_memory: bool = False,
    protocol: Protocol = "standard",
    color: tuple[int, int, int] | None = None,
) -> Iterator[Batch]:
    """Augmented batches in the order of ``batches``; with the teacher's logits if it has them.

    Crops are padded with ``color``, the student's mean colour (``Segmenter.input.color``).
    """
    padding = padding_of(protocol, dataset.classes, color)
    indices = epoch_indices(dataset, config)
    loader = _loader(
        _Fallible(_Augmented(dataset, config.augment, batches.seed, padding, indices)),
        config.workers,
        batch_sampler=batches,
        collate_fn=_collate_crops,
        pin_memory=pin_memory,
    )
    return _raise_errors(iter(loader))


def _single(samples: list[tuple[int, Sample] | UserError]) -> Any:
    return samples[0]


def sample_loader(
    dataset: SegDataset, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, Sample]]:
    """(index, sample) as they are, in order; every ``world``-th from ``rank``."""
    indices = range(rank, len(dataset), world)
    loader = _loader(
        _Fallible(_Indexed(dataset)), workers, sampler=indices, batch_size=1, collate_fn=_single
    )
    return _raise_errors(iter(loader))


@dataclass(frozen=True)
class _Indexed:
    dataset: SegDataset

    def __call__(self, index: int) -> tuple[int, Sample]:
        return index, self.dataset.read(index)
