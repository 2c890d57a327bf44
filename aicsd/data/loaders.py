"""Deterministic, resumable loaders.

A training sample's augmentation depends on (seed, epoch, index) only, so the stream of batches is
the same for any number of workers and after any resume.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from aicsd.data.augment import MAP_STRIDE, Crop, Padding, augment, padding_of
from aicsd.data.batches import TrainBatches, epoch_indices
from aicsd.data.protocol import Sample, SegDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.errors import UserError
from aicsd.types import Batch, EvaluationProtocol

T = TypeVar("T")
FILES, FILES_PER_WORKER = 16, 12
"""Files that a loader may have open at once: pipes, and memory shared with its workers."""


class _Fallible(TorchDataset[Any]):
    """Samples and batches of a loader; a UserError travels from a worker as a value.

    Raised in a worker, it would arrive with a traceback in place of its one line.

    Args:
        load: makes a sample of a key.
        combine: makes a batch of samples.
    """

    def __init__(self, load: Callable[[Any], Any], combine: Callable[[list[Any]], Any]) -> None:
        self.load, self.combine = load, combine

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.load(key)
        except UserError as error:
            return error

    def collate(self, samples: list[Any]) -> Any:
        """A batch, or the first error among ``samples``."""
        return next((s for s in samples if isinstance(s, UserError)), None) or self.combine(samples)


@dataclass(frozen=True)
class _Augmented:
    dataset: SegDataset
    config: AugmentConfig
    seed: int
    padding: Padding
    data: DataConfig
    _shown: dict[int, list[int]] = field(default_factory=dict)
    """Indices of the dataset, by the number of a sample in the epoch; of the last epochs."""

    def __call__(self, key: tuple[int, int]) -> Crop:
        epoch, number = key
        if epoch not in self._shown:
            if len(self._shown) > 1:  # a loader is at most one epoch ahead
                self._shown.clear()
            self._shown[epoch] = epoch_indices(self.dataset, self.data, self.seed, epoch)
        sample = self.dataset.read(self._shown[epoch][number])
        rng = np.random.default_rng((self.seed, *key))
        stride = getattr(self.dataset, "map_stride", MAP_STRIDE)
        return augment(sample, rng, self.config, self.padding, stride)


def _stack(crops: list[Crop]) -> Batch:
    images, masks, valid, maps = zip(*crops, strict=True)
    return Batch(
        # a permuted view: the channels-last layout that convolutions like best, without a copy
        image=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        mask=torch.from_numpy(np.stack(masks)),
        valid=torch.from_numpy(np.stack(valid)),
        teacher_logits=None if maps[0] is None else torch.stack(maps),
    )


def _run(dataset: _Fallible, workers: int, **arguments: Any) -> Generator[Any, None, None]:
    """The batches of ``dataset``; an error among them is raised."""
    if workers:
        _require_open_files(workers)
    with lost_workers(), _signals_kept():
        # a generator of its own: the loader would otherwise draw from the generator of the dropout
        generator = torch.Generator().manual_seed(0)
        items = iter(
            DataLoader(
                dataset,
                num_workers=workers,
                generator=generator,
                worker_init_fn=_init_worker if workers else None,
                collate_fn=dataset.collate,
                **arguments,
            )
        )
    return _raise_errors(items)


def _raise_errors(items: Iterator[T | UserError]) -> Generator[T, None, None]:
    try:
        while True:
            with lost_workers():
                try:
                    item = next(items)
                except StopIteration:
                    return
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        if hasattr(items, "_shutdown_workers"):  # now, and not when the traceback is forgotten
            items._shutdown_workers()


@contextmanager
def lost_workers() -> Iterator[None]:
    """Turn the end of a process that loads images into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            "a process that loads images was ended from outside, most likely because memory ran "
            "out: lower data.workers, data.batch_size or data.cache_mb"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Take back the handler by which PyTorch raises the end of a worker at any place in a program.

    Without it the end is seen where the next batch is taken, at most 5 seconds later.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _require_open_files(workers: int) -> None:
    """Refuse more workers than the limit of open files allows, before any is started."""
    rehearsed: list[int] = []
    try:
        for _ in range(FILES + FILES_PER_WORKER * workers):
            rehearsed.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise UserError(
            f"too many open files for {workers} processes that load images: lower data.workers, or "
            "raise the limit (ulimit -n 4096)"
        ) from error
    finally:
        for file in rehearsed:
            os.close(file)


def _init_worker(_: int) -> None:
    # the training process decides when to stop, and ends its workers; a Ctrl-C or a SIGTERM to the
    # group reaches all of them
    for number in ("SIGINT", "SIGHUP"):  # a terminal sends them to all of its processes
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_IGN)
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
    protocol: EvaluationProtocol = "standard",
    color: tuple[int, int, int] | None = None,
) -> Generator[Batch, None, None]:
    """Augmented batches in the order of ``batches``; with the teacher's logits if it has them.

    ``close()`` ends the workers before the last batch.

    Crops are padded with ``color``, the student's mean colour (``Segmenter.input.color``).
    """
    padding = padding_of(protocol, dataset.classes, color)
    load = _Augmented(dataset, config.augment, batches.seed, padding, config)
    return _run(
        _Fallible(load, _stack), config.workers, batch_sampler=batches, pin_memory=pin_memory
    )


def _single(samples: list[tuple[int, Sample]]) -> tuple[int, Sample]:
    return samples[0]


def sample_loader(
    dataset: SegDataset, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, Sample]]:
    """(index, sample) as they are, in order; every ``world``-th from ``rank``."""
    indices = range(rank, len(dataset), world)
    return _run(_Fallible(_Indexed(dataset), _single), workers, sampler=indices, batch_size=1)


@dataclass(frozen=True)
class _Indexed:
    dataset: SegDataset

    def __call__(self, index: int) -> tuple[int, Sample]:
        return index, self.dataset.read(index)
