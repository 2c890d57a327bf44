"""Training and validation images, from settings or from objects in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aicsd.data.batches import training_images
from aicsd.data.check import check_dataset, check_splits
from aicsd.data.file_dataset import LayoutError
from aicsd.data.frames import photo_folder
from aicsd.data.open import AUTO, DATASETS, open_dataset
from aicsd.data.photos import photo_dataset
from aicsd.data.protocol import Classes, SegDataset, Splits
from aicsd.data.settings import DataConfig
from aicsd.data.wrappers import WithPhotos
from aicsd.errors import UserError, suggest
from aicsd.files import at_home

Data = str | Path | Mapping[str, Any] | Splits | tuple[SegDataset, SegDataset]
"""A dataset by name, its folder, the keys of ``DataConfig``, or datasets in memory."""


def open_splits(config: DataConfig, check: bool = True) -> tuple[Splits, list[str]]:
    """The images that a config names.

    Args:
        config: names dataset, root and splits.
        check: read every mask first, if ``config.check`` is set.

    Returns:
        The splits, the training one with the labels that it may use, and a line for everything
        that is odd about them.

    Raises:
        UserError: a dataset that cannot be opened, or its first file that cannot be used.
    """
    config = config.named()
    train, val = (
        open_dataset(config.name, config.root, split, config.options)
        for split in (config.train_split, config.val_split)
    )
    notes: list[str] = []
    if check and config.check and DATASETS[config.name].layout:  # generated data is sound
        notes = check_splits(Splits(train, val), config.augment)
    train = training_images(train, config)
    if config.unlabelled is not None:
        train = WithPhotos(train, _photos(config.unlabelled, train.classes, check and config.check))
    return Splits(train, val), notes


def _photos(folder: str, classes: Classes, check: bool) -> SegDataset:
    """Photos without labels, each of which can be read."""
    path = photo_folder(Path(at_home(folder)))
    if not path.is_dir():
        raise UserError(f"data.unlabelled: no folder {path}")
    try:
        photos = photo_dataset(path, classes)
    except LayoutError as error:
        raise UserError(f"data.unlabelled: {error}") from error
    for problem in check_dataset(photos) if check else ():
        raise UserError(f"data.unlabelled: {problem}")
    return photos


def data_settings(data: Data) -> tuple[dict[str, Any], Splits | None]:
    """The argument ``data`` -> the keys of ``DataConfig``, and datasets in memory.

    Args:
        data: the name of a dataset, a folder, keys, or splits. Keys may hold ``train`` and
            ``val``, datasets in memory, beside others.

    Raises:
        UserError: a name that is a folder too, neither, or keys with one split in memory.
    """
    if isinstance(data, tuple):
        return {}, Splits(*data)
    if isinstance(data, Mapping):
        keys = dict(data)
        held = [keys.pop(name, None) for name in Splits._fields]
        if all(part is None for part in held):
            return keys, None
        if None in held or keys.keys() & {"name", "root", "options"}:
            raise UserError("data: give train and val, both datasets in memory, without a name")
        return keys, Splits(*held)
    is_name, is_folder = str(data) in (AUTO, *DATASETS), Path(at_home(data)).is_dir()
    if isinstance(data, str) and is_name:
        if is_folder:
            raise UserError(
                f"data: {data!r} is a dataset and a folder here; give {{'name': {data!r}, 'root': "
                f"FOLDER}} for the dataset, or './{data}' for the folder"
            )
        return {"name": data}, None
    if not is_folder:
        raise UserError(f"data: no folder {data}, and no dataset{suggest(data, DATASETS)}")
    return {"root": str(data)}, None
