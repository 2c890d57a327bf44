"""The table of datasets, and how one of them is opened by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aicsd.data.camvid import CAMVID
from aicsd.data.cityscapes import CITYSCAPES
from aicsd.data.classes_file import TABLE, TEXT
from aicsd.data.digits import DIGITS
from aicsd.data.entry import DatasetEntry
from aicsd.data.file_dataset import FileDataset, LayoutError
from aicsd.data.folder import FOLDER
from aicsd.data.photos import PHOTOS
from aicsd.data.protocol import Classes, SegDataset
from aicsd.data.shards import SHARDS
from aicsd.data.voc import VOC
from aicsd.errors import UserError, check_options, suggest

T = TypeVar("T")
Options = dict[str, Any]

GENERATED = "digits"
"""The dataset that needs no root."""
OWN = "folder"
"""The dataset of a root that has the layout of no other."""
PHOTOS_ONLY = "photos"
"""The dataset that has no masks."""
DATASETS: dict[str, DatasetEntry] = {
    GENERATED: DIGITS,
    "voc": VOC,
    "camvid": CAMVID,
    "cityscapes": CITYSCAPES,
    "shards": SHARDS,
    PHOTOS_ONLY: PHOTOS,
    OWN: FOLDER,
}
"""Every dataset. A new one is a file and a line here."""
AUTO = "auto"
"""Name that stands for the dataset whose layout the root has."""
MEMORY = "memory"
"""Name in the config of a run whose data were objects in memory."""


def differs_by_root(name: str) -> bool:
    """Whether a dataset is another one at another root: of no public one, but a layout."""
    entry = DATASETS.get(name)
    return entry is not None and bool(entry.layout) and entry.classes is None


def find_name(name: str, root: str | None) -> str:
    """The name of a dataset, where ``auto`` may stand for it.

    Raises:
        UserError: an unknown name, or a root beside a dataset that has none.
    """
    if name == AUTO:
        return GENERATED if root is None else _layout_of(_folder(root))
    if name == MEMORY:
        raise UserError(
            "the data of this run were in memory: give data.name and data.root, or data"
        )
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}{suggest(name, [AUTO, *DATASETS])}")
    if root is not None and not DATASETS[name].layout:
        raise UserError(
            f"data.root is {root}, but dataset {name!r} is generated and reads no files; leave "
            f"data.root out, or leave data.name out to use {root}"
        )
    return name


def _layout_of(root: Path) -> str:
    # classes of its own make a folder in the layout of CamVid or VOC another dataset
    names_classes = any((root / name).is_file() for name in (TEXT, TABLE))
    entries = {n: e for n, e in DATASETS.items() if not (names_classes and e.classes)}
    found = [name for name, entry in entries.items() if entry.found and entry.found(root)]
    return found[0] if len(found) == 1 else OWN


def _folder(root: str) -> Path:
    try:
        return Path(root).expanduser()
    except RuntimeError as error:  # no such user, or no home folder
        raise UserError(f"data.root: {root} cannot be found: {error}") from error


def classes_by_count(count: int) -> Classes | None:
    """The classes of the one public dataset that has ``count`` of them, if there is just one."""
    found = [e.classes for e in DATASETS.values() if e.classes and len(e.classes.names) == count]
    return found[0] if len(found) == 1 else None


def open_dataset(
    name: str, root: str | None, split: str, options: Options | None = None
) -> SegDataset:
    """One split of the dataset ``name``.

    Raises:
        UserError: unknown name or option, missing root, files that are not where they belong, or
            a split whose masks are not public.
    """
    dataset = open_unchecked(name, root, split, options)
    if isinstance(dataset, FileDataset):
        dataset.require_files()
    return dataset


def open_unchecked(
    name: str, root: str | None, split: str, options: Options | None = None
) -> SegDataset:
    """One split of the dataset ``name``, of which files may be missing.

    Raises:
        UserError: as :func:`open_dataset`, but for single files.
    """
    name = find_name(name, root)
    return _call(DATASETS[name].open, name, root, split, options)


def open_images(
    name: str, root: str | None, split: str, options: Options | None = None
) -> list[Path]:
    """Image files of a split, in the order of its samples; a split without masks has them too.

    Raises:
        UserError: as :func:`open_dataset`, or a dataset that is not kept in files.
    """
    paths = image_paths(name, root, split, options)
    for path in paths:
        if not path.is_file():
            raise UserError(f"no image at {path} (aicsd data check lists every such file)")
    return paths


def image_paths(
    name: str, root: str | None, split: str, options: Options | None = None
) -> list[Path]:
    """Image files of a split, which may be missing.

    Raises:
        UserError: as :func:`open_images`, but for single files.
    """
    name = find_name(name, root)
    entry = DATASETS[name]
    if entry.images is not None:
        return _call(entry.images, name, root, split, options)
    dataset = _call(entry.open, name, root, split, options)
    if not isinstance(dataset, FileDataset):
        raise UserError(f"dataset {name!r} has no image files")
    return [pair.image for pair in dataset.pairs]


def _call(
    function: Callable[..., T], name: str, root: str | None, split: str, options: Options | None
) -> T:
    """``function`` of dataset ``name`` with checked options; its errors name the layout."""
    layout, options = DATASETS[name].layout, options or {}
    check_options(f"data.options of {name}", function, options, taken=("root", "split"))
    if not layout:
        return function(split=split, **options)
    if root is None:
        raise UserError(f"dataset {name!r} needs data.root; expected layout: {layout}")
    folder = DATASETS[name].folder(_folder(root))
    if not folder.is_dir():
        raise UserError(f"data.root: no folder {folder}; expected layout: {layout}")
    try:
        return function(root=folder, split=split, **options)
    except LayoutError as error:
        raise UserError(f"{error} (layout of {name}: {layout})") from error
