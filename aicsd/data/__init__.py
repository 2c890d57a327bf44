"""Datasets: one file each. A new one is a file and a line in ``DATASETS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from aicsd.data import camvid, cityscapes, digits, folder, voc
from aicsd.data.base import (
    Classes,
    FileDataset,
    MasksWithheldError,
    Sample,
    SegDataset,
    read_image,
)
from aicsd.errors import UserError, check_options, suggest

__all__ = [
    "DATASETS",
    "Classes",
    "DatasetEntry",
    "Sample",
    "SegDataset",
    "Survey",
    "check_dataset",
    "open_dataset",
    "open_images",
    "survey",
]

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetEntry:
    """How to open a dataset, and the layout that its root must have ("" = it needs none).

    ``images`` lists the images of a split that needs no masks; None: only those of ``open``.
    """

    open: Callable[..., SegDataset]
    layout: str
    images: Callable[..., list[Path]] | None = None


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(digits.Digits, ""),
    "camvid": DatasetEntry(camvid.open_camvid, camvid.LAYOUT, camvid.camvid_images),
    "voc": DatasetEntry(voc.open_voc, voc.LAYOUT, voc.voc_images),
    "cityscapes": DatasetEntry(
        cityscapes.open_cityscapes, cityscapes.LAYOUT, cityscapes.cityscapes_images
    ),
    "folder": DatasetEntry(folder.open_folder, folder.LAYOUT, folder.folder_images),
}


def open_dataset(
    name: str, root: str | None, split: str, options: dict[str, Any] | None = None
) -> SegDataset:
    """One split of the dataset ``name``.

    Raises:
        UserError: unknown name or option, missing root, files that are not where they belong, or
            a split whose masks are not public.
    """
    dataset = _call(_entry(name).open, name, root, split, options)
    if isinstance(dataset, FileDataset):
        dataset.require_files()
    return dataset


def open_images(
    name: str, root: str | None, split: str, options: dict[str, Any] | None = None
) -> list[Path]:
    """Image files of a split, in the order of its samples; a split without masks has them too.

    Raises:
        UserError: as :func:`open_dataset`, or a dataset that is not kept in files.
    """
    paths = _image_paths(name, root, split, options)
    for path in paths:
        if not path.is_file():
            raise UserError(f"no image at {path} (aicsd data check lists every such file)")
    return paths


class Survey(NamedTuple):
    """What ``aicsd data check`` tells of a split."""

    images: int
    problems: list[str]
    """One line for every sample that cannot be used."""
    notes: list[str]
    """What is odd, but no obstacle."""


def survey(
    name: str,
    root: str | None,
    split: str,
    options: dict[str, Any] | None = None,
    decode_images: bool = True,
) -> Survey:
    """Check every file of a split; of a split without public masks, the images.

    Raises:
        UserError: the split cannot be opened at all.
    """
    try:
        dataset = _call(_entry(name).open, name, root, split, options)
    except MasksWithheldError as error:
        paths = _image_paths(name, root, split, options)
        problems = _errors(lambda index: read_image(paths[index]), len(paths))
        return Survey(len(paths), list(problems), [f"only images are checked: {error}"])
    notes = dataset.notes if isinstance(dataset, FileDataset) else []
    return Survey(len(dataset), list(check_dataset(dataset, decode_images)), notes)


def _entry(name: str) -> DatasetEntry:
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}{suggest(name, DATASETS)}")
    return DATASETS[name]


def _call(
    function: Callable[..., T],
    name: str,
    root: str | None,
    split: str,
    options: dict[str, Any] | None,
) -> T:
    """``function`` of dataset ``name`` with checked options; its errors tell the layout."""
    layout, options = _entry(name).layout, options or {}
    check_options(f"data.options of {name}", function, options, taken=("root", "split"))
    if not layout:
        return function(split=split, **options)
    if root is None:
        raise UserError(f"dataset {name!r} needs data.root; expected layout: {layout}")
    if not Path(root).is_dir():
        raise UserError(f"data.root: no folder {root}; expected layout: {layout}")
    try:
        return function(root=Path(root), split=split, **options)
    except MasksWithheldError:
        raise
    except UserError as error:
        raise UserError(f"{error} (layout of {name}: {layout})") from error


def _image_paths(
    name: str, root: str | None, split: str, options: dict[str, Any] | None
) -> list[Path]:
    entry = _entry(name)
    if entry.images is not None:
        return _call(entry.images, name, root, split, options)
    dataset = _call(entry.open, name, root, split, options)
    if not isinstance(dataset, FileDataset):
        raise UserError(f"dataset {name!r} has no image files")
    return [pair.image for pair in dataset.pairs]


def check_dataset(dataset: SegDataset, decode_images: bool = False) -> Iterator[str]:
    """Yield one line for every sample that cannot be used; nothing for a sound dataset.

    Args:
        dataset: what to check. Generated data has no files and is always sound.
        decode_images: decode the images too; without it only their sizes are read.
    """
    if isinstance(dataset, FileDataset):
        yield from _errors(dataset.read if decode_images else dataset.check_pair, len(dataset))


def _errors(check: Callable[[int], object], count: int) -> Iterator[str]:
    """The messages of ``check`` on 0 to ``count`` - 1, in order."""

    def problem(index: int) -> str | None:
        try:
            check(index)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        for line in pool.map(problem, range(count)):
            if line is not None:
                yield line
