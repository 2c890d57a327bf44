"""Decoded samples kept in memory, within a budget. It changes the speed and nothing else."""

from __future__ import annotations

import multiprocessing
import shutil
from ctypes import c_uint8
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np

from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError
from aicsd.images import UInt8Array

MB = 1_000_000
SHARED_MEMORY = Path("/dev/shm")
"""Shared memory of Linux; that of a container may be small."""
MEASURED = 16
"""Samples that are read to estimate the size of all."""


class CachedDataset:
    """Keeps what ``dataset`` has decoded, first come, first kept, until the budget is used up.

    The memory is shared: worker processes that are started with this object, by fork or spawn, find
    what any of them has decoded, and together they stay within the budget.

    Args:
        dataset: dataset to read from.
        megabytes: budget in 10^6 bytes; not more is taken than the whole dataset needs.
        shared: whether other processes will read; without it no shared memory is needed.

    Raises:
        UserError: less shared memory than the budget.
    """

    def __init__(self, dataset: SegDataset, megabytes: int, shared: bool) -> None:
        self.dataset = dataset
        self.classes = dataset.classes
        self.names = dataset.names
        self.labelled = dataset.labelled
        sizes = _sample_sizes(dataset)
        self.bytes = min(megabytes * MB, max(sizes) * len(dataset))
        self.mean_size = sum(sizes) / len(sizes)
        if shared:
            _require_shared_memory(self.bytes)
        self._pixels: Any = RawArray(c_uint8, self.bytes) if shared else bytearray(self.bytes)
        # offset, height and width of every sample; a height of 0 means that it is not kept
        self._places = RawArray("q", 3 * len(dataset))
        self._used = RawArray("q", 1)
        # this kind can be passed to a spawned process and to a forked one
        self._lock = multiprocessing.get_context("spawn").Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index)

    def __str__(self) -> str:
        fit = min(len(self), int(self.bytes / self.mean_size))
        return (
            f"data.cache_mb: {self.bytes / MB:.0f} MB hold {'' if fit == len(self) else 'about '}"
            f"{fit} of {len(self)} images ({self.mean_size / MB:.2f} MB each)"
        )

    def read(self, index: int) -> Sample:
        """Sample of ``dataset``; a read-only view if it is kept."""
        place = np.frombuffer(self._places, np.int64).reshape(-1, 3)[index]
        with self._lock:
            offset, height, width = place.tolist()
        if height:
            return self._view(offset, height, width)
        sample = self.dataset.read(index)
        height, width = sample.mask.shape
        with self._lock:
            offset = self._used[0]
            if place[1] == 0 and offset + 4 * height * width <= self.bytes:
                kept = self._view(offset, height, width, writable=True)
                kept.image[:], kept.mask[:] = sample.image, sample.mask
                self._used[0] = offset + 4 * height * width
                place[:] = offset, height, width
        return sample

    def _view(self, offset: int, height: int, width: int, writable: bool = False) -> Sample:
        area = height * width
        pixels: UInt8Array = np.frombuffer(self._pixels, np.uint8, 4 * area, offset)
        pixels.setflags(write=writable)
        image, mask = pixels[: 3 * area], pixels[3 * area :]
        return Sample(image.reshape(height, width, 3), mask.reshape(height, width))


def _sample_sizes(dataset: SegDataset) -> list[int]:
    """Bytes of some samples, spread evenly over the dataset."""
    count = min(MEASURED, len(dataset))
    indices = (number * len(dataset) // count for number in range(count))
    return [4 * dataset.read(index).mask.size for index in indices]


def _require_shared_memory(size: int) -> None:
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < size:
        raise UserError(
            f"data.cache_mb takes {size / MB:.0f} MB, but {SHARED_MEMORY} has {free / MB:.0f} MB "
            "free; lower it, or set data.workers to 0, which needs no shared memory"
        )
