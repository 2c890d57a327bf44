"""Inputs of ``aicsd benchmark cost``: the data and networks of a config, or stand-ins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from aicsd.benchmark.settings import CostConfig
from aicsd.config import build_config, find_config
from aicsd.data import DATASETS, Classes, Sample, SegDataset, open_dataset
from aicsd.data.batches import training_images
from aicsd.errors import UserError
from aicsd.models import ModelConfig, Segmenter, build_model, is_there, load_model
from aicsd.run_config import DistillConfig, TrainConfig
from aicsd.run_settings import renamed
from aicsd.runs import RunFolder
from aicsd.yaml_file import read_yaml

SEVERAL = 64
"""Images of a stand-in split of unknown size."""


@dataclass(frozen=True)
class CostData:
    """Training and validation images, real or stand-ins."""

    train: SegDataset
    val: SegDataset
    size: tuple[int, int]
    """Width and height of the first validation image."""
    counts: tuple[int, int] | None
    """Images to train and to validate on; None if unknown."""
    missing: str | None
    """Reason for stand-ins; None for real images."""


class RandomImages(SegDataset):
    """Random images and masks where a dataset is not there."""

    def __init__(self, classes: Classes, size: tuple[int, int], count: int) -> None:
        self.classes, self.shape = classes, size[::-1]
        self.names = [f"random_{index}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        height, width = self.shape
        rng = np.random.default_rng(index)
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        mask = rng.integers(len(self.classes.names), size=(height, width), dtype=np.uint8)
        return Sample(image, mask)


def open_data(
    config: CostConfig,
    teacher: Segmenter | None,
    classes: int | None,
    images: int | None,
    size: tuple[int, int] | None,
) -> CostData:
    """The config's data if its folder is there, else random images of the right kind.

    Args:
        config: config of the run.
        teacher: network whose classes stand for those of a missing folder.
        classes: number of classes, where neither data nor teacher gives it.
        images: number of training images, where the data does not give it.
        size: width and height of an image, where the data does not give it.

    Raises:
        UserError: data that is there and cannot be used; or not there, of unknown classes.
    """
    data = config.data.named()
    where = None if data.root is None else Path(data.root)
    entry = DATASETS[data.name]
    if not entry.layout or (where is not None and where.is_dir()):
        train = open_dataset(data.name, data.root, data.train_split, data.options)
        val = open_dataset(data.name, data.root, data.val_split, data.options)
        train = training_images(train, data)
        height, width = val.read(0).mask.shape
        return CostData(train, val, (width, height), (len(train), len(val)), None)
    missing = "data.root is not given" if where is None else f"there is no folder {where}"
    if entry.classes is not None:
        found = entry.classes
    elif teacher is not None:
        found = teacher.classes
    elif classes is not None:
        found = Classes(tuple(map(str, range(classes))), ((0, 0, 0),) * classes)
    else:
        raise UserError(f"{missing}, so the number of classes is not known: give --classes N")
    width, height = size or entry.usual_size or (data.augment.crop, data.augment.crop)
    counts = entry.counts
    part = 0 if data.unlabelled_rest else data.train_images
    train_count = part or images or counts.get(data.train_split)
    val_count = counts.get(data.val_split, 0)
    return CostData(
        RandomImages(found, (width, height), train_count or SEVERAL),
        RandomImages(found, (width, height), val_count or SEVERAL),
        (width, height),
        None if train_count is None else (train_count, val_count),
        missing,
    )


class TeacherSource(NamedTuple):
    """A trained teacher, or how to build one of its kind."""

    trained: Segmenter | None
    untrained: ModelConfig
    note: str

    def network(self, data: CostData, seed: int) -> Segmenter:
        """The trained one, or an untrained one for the classes of ``data``."""
        if self.trained is not None:
            return self.trained
        return build_untrained(self.untrained, data.train.classes, seed)


def find_teacher(config: CostConfig, teacher_config: str | None) -> TeacherSource | None:
    """The config's teacher, if its method has one.

    One that is not there is replaced by an untrained network, which costs the same: of the config
    in the run folder of a teacher that has not finished, or of ``teacher_config``.

    Raises:
        UserError: no teacher, and no config of its network.
    """
    if not config.recipe.needs_teacher:
        return None
    path = None if config.teacher is None else Path(config.teacher)
    if config.teacher is not None and is_there(config.teacher):
        trained = load_model(config.teacher)
        return TeacherSource(trained, ModelConfig(), f"teacher: {config.teacher}")
    if teacher_config is None and path is not None and RunFolder(path).config.is_file():
        teacher_config = str(RunFolder(path).config)
    if teacher_config is None:
        where = "no teacher is given" if path is None else f"there is no teacher at {path}"
        raise UserError(
            f"method {config.recipe.name!r} needs a teacher and {where}: give --teacher RUN, or "
            "--teacher_config FILE with the config of aicsd train that it is (to be) trained with"
        )
    network = read_network(find_config(teacher_config))
    return TeacherSource(None, network, f"teacher: UNTRAINED, the network of {teacher_config}")


def read_network(path: Path) -> ModelConfig:
    """The network that a config of ``aicsd train`` (or ``distill``) trains.

    Raises:
        UserError: no such file, or no config.
    """
    keys = read_yaml(path)
    if not isinstance(keys, dict):
        raise UserError(f"config {path} must be a mapping of keys, as --print_config shows it")
    keys = {"run": "-", **renamed(keys)}
    if "model" in keys:
        return build_config(TrainConfig, keys).model
    return build_config(DistillConfig, keys).student


def build_untrained(config: ModelConfig, classes: Classes, seed: int) -> Segmenter:
    """A network with random weights: they cost what trained ones cost."""
    torch.manual_seed(seed)
    return build_model(replace(config, weights="none"), classes)
