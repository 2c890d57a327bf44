"""Datasets: one file each. A new one is a file and a line in ``DATASETS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aicsd.data import camvid, digits, folder
from aicsd.data.base import Classes, FileDataset, Sample, SegDataset
from aicsd.errors import UserError, check_options, suggest

__all__ = [
    "DATASETS",
    "Classes",
    "DatasetEntry",
    "Sample",
    "SegDataset",
    "check_dataset",
    "open_dataset",
]


@dataclass(frozen=True)
class DatasetEntry:
    """How to open a dataset, and the layout that its root must have ("" = it needs none)."""

    open: Callable[..., SegDataset]
    layout: str


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(digits.Digits, ""),
    "camvid": DatasetEntry(camvid.open_camvid, camvid.LAYOUT),
    "folder": DatasetEntry(folder.open_folder, folder.LAYOUT),
}


def open_dataset(
    name: str, root: str | None, split: str, options: dict[str, Any] | None = None
) -> SegDataset:
    """One split of the dataset ``name``.

    Raises:
        UserError: unknown name or option, missing root, or files that are not where they belong.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}{suggest(name, DATASETS)}")
    entry, options = DATASETS[name], options or {}
    check_options(f"data.options of {name}", entry.open, options, taken=("root", "split"))
    if not entry.layout:
        return entry.open(split=split, **options)
    if root is None:
        raise UserError(f"dataset {name!r} needs data.root; expected layout: {entry.layout}")
    if not Path(root).is_dir():
        raise UserError(f"data.root: no folder {root}; expected layout: {entry.layout}")
    try:
        return entry.open(root=Path(root), split=split, **options)
    except UserError as error:
        raise UserError(f"{error} (layout of {name}: {entry.layout})") from error


def check_dataset(dataset: SegDataset, decode_images: bool = False) -> Iterator[str]:
    """Yield one line for every sample that cannot be used; nothing for a sound dataset.

    Args:
        dataset: what to check. Generated data has no files and is always sound.
        decode_images: decode the images too; without it only their sizes are read.
    """
    if not isinstance(dataset, FileDataset):
        return

    def problem(index: int) -> str | None:
        try:
            if decode_images:
                dataset.read(index)
            else:
                dataset.check_pair(index)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        for line in pool.map(problem, range(len(dataset))):
            if line is not None:
                yield line
