"""Measurements on a cell without a training: gradients of its terms, time of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from aicsd.benchmark.methods import Cell
from aicsd.benchmark.steps import repeated
from aicsd.benchmark.weights import matched_weights
from aicsd.data.loaders import train_loader
from aicsd.data.protocol import SegDataset
from aicsd.data.splits import open_splits
from aicsd.distiller import Distiller
from aicsd.engine.device import open_fabric
from aicsd.engine.run import connect_teacher
from aicsd.engine.run_batches import plan_run
from aicsd.engine.run_recipe import class_pixels
from aicsd.engine.step import Training, train_step
from aicsd.evaluation.cost import synchronize, take_turns
from aicsd.models import Segmenter, build_model, load_model
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.types import Batch

LOADED_BATCHES = 4
"""Batches on which gradients and times are measured."""
TURNS = 8


class Prepared(NamedTuple):
    """A cell before its first step, on its device."""

    fabric: Fabric
    student: Segmenter
    teacher: Teacher | None
    batches: list[Batch]
    class_pixels: tuple[int, ...] | None
    """Labelled pixels of each class in the training data, if a term needs them."""


def prepare(cell: Cell) -> Prepared:
    """Networks and a few batches of a cell, on one device.

    Raises:
        UserError: data or a teacher that is not there.
    """
    config = cell.config
    fabric = open_fabric(replace(config, devices=1, num_nodes=1))
    fabric.launch()
    train: SegDataset = open_splits(config.data, check=False)[0].train
    pixels = class_pixels(cell.recipe, train)
    torch.manual_seed(config.seed)
    student = build_model(config.student, train.classes).to(fabric.device)
    teacher = None
    if config.teacher is not None:
        teacher = connect_teacher(
            load_model(config.teacher), train.classes, config.teacher_classes
        ).to(fabric.device)
        if config.teacher_cache is not None:
            cache = TeacherCache(Path(config.teacher_cache), config.teacher_cache_top_k)
            train = cache.attach(train, teacher, workers=0)
        else:
            teacher.speed_up(config.teacher_runtime, config.data.augment.crop)
    loader = train_loader(
        train,
        replace(config.data, workers=0),
        replace(plan_run(config, train), stop=LOADED_BATCHES),
        protocol=config.protocol,
        color=student.input.color,
    )
    batches = [batch.to(fabric.device) for batch in loader]
    return Prepared(fabric, student, teacher, batches, pixels)


def measure_weights(cell: Cell) -> dict[str, float]:
    """Weights of a cell's terms with which all of them together pull as hard as the labels."""
    found = prepare(cell)
    return matched_weights(
        found.student, found.teacher, found.batches, cell.recipe, found.class_pixels
    )


def step_ratio(cell: Cell, other: Cell) -> float:
    """Time of a step of one cell over that of another.

    The two take turns, so that what else the machine does falls on both. Loading is left out.
    """
    steps = {"own": _step(cell), "other": _step(other)}
    seconds = take_turns(steps, TURNS)
    return median(seconds["own"]) / median(seconds["other"])


def _step(cell: Cell) -> Callable[[], None]:
    found = prepare(cell)
    distiller = Distiller(found.student, cell.recipe, found.teacher, found.class_pixels)
    training = Training(cell.config.optimizer, cell.config.seed, distiller, found.fabric)
    batches = repeated(found.batches)

    def step() -> None:
        train_step(training, batches, 0, 0.5)
        synchronize(found.fabric.device)

    return step
