"""Train a run from its config: open the data, build the networks, train, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from aicsd.data import Splits, check_splits, open_splits
from aicsd.data.memory import CachedDataset
from aicsd.data.open import MEMORY
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.engine.device import is_first_process, open_fabric
from aicsd.engine.fingerprints import changed_settings, check_inputs, describe_inputs, save_inputs
from aicsd.engine.fit import fit
from aicsd.engine.graphs import check_graphs
from aicsd.engine.peers import ending_together, launch
from aicsd.engine.run_batches import plan_run
from aicsd.engine.run_recipe import check_cache, class_pixels, recipe_of, recipe_of_labels
from aicsd.engine.run_report import write_run_report
from aicsd.engine.stop import interruptible
from aicsd.engine.sync_bn import share_statistics, shares_statistics
from aicsd.errors import UserError, enough_memory, one_line
from aicsd.messages import say
from aicsd.methods import Recipe
from aicsd.methods.contract import Losses
from aicsd.models import (
    ModelConfig,
    Segmenter,
    build_model,
    load_model,
    without_names,
    wrap_module,
)
from aicsd.run_config import DistillConfig, FitConfig, TrainConfig
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.teacher.labels import TeacherLabelled
from aicsd.teacher.runtime import LOGITS_ALONE
from aicsd.types import Batch, Runtime

MEMORY_ADVICE = (
    "for this training: lower data.batch_size (and raise optimizer.accumulate, for steps of as "
    "many images) or data.augment.crop, or choose a smaller network"
)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    metrics: dict[str, Any]
    """Metrics of the final student on the validation split: what ``metrics.json`` holds."""
    student: Segmenter
    """In evaluation mode, on the CPU."""


class StudentPlan(NamedTuple):
    """The network to train: settings, or a module."""

    config: ModelConfig
    module: nn.Module | None = None

    def build(self, classes: Classes) -> Segmenter:
        """The network for ``classes``, with the weights that it starts from."""
        if self.module is not None:
            return wrap_module(self.module, classes)
        return build_model(self.config, classes)


class TeacherPlan(NamedTuple):
    """A teacher, and how it is run."""

    network: nn.Module
    runtime: Runtime = "eager"
    cache: TeacherCache | None = None
    classes: str | None = None


class RunPlan(NamedTuple):
    """A run before anything is opened or built."""

    config: FitConfig
    student: StudentPlan
    recipe: Recipe
    teacher: TeacherPlan | None = None
    splits: Splits | None = None
    """Data in memory; None: what the config names."""


def run_training(
    config: TrainConfig, splits: Splits | None = None, module: nn.Module | None = None
) -> Run:
    """Train a network on labels alone: what ``aicsd train`` does.

    Args:
        config: settings of the run.
        splits: data in memory, in place of what ``config.data`` names.
        module: a network in memory, in place of what ``config.model`` names.

    Raises:
        UserError: anything in the input that the user can fix.
    """
    recipe = recipe_of_labels(config, config.terms)
    if recipe.needs_teacher:
        raise UserError("terms: one of them needs a teacher; aicsd distill has one")
    if config.terms:
        config = replace(config, terms=recipe.to_dict())
    return _run(RunPlan(config, StudentPlan(config.model, module), recipe, splits=splits))


def run_distillation(
    config: DistillConfig,
    network: nn.Module | None = None,
    splits: Splits | None = None,
    losses: Losses | None = None,
    student: nn.Module | None = None,
) -> Run:
    """Distil a teacher into a student: what ``aicsd distill`` does.

    Args:
        config: settings of the run.
        network: a teacher in memory, in place of what ``config.teacher`` names.
        splits: data in memory, in place of what ``config.data`` names.
        losses: further losses by name, for the recipe.
        student: a student in memory, in place of what ``config.student`` names.

    Raises:
        UserError: anything in the input that the user can fix.
    """
    recipe = recipe_of(config, losses)
    config = replace(config, terms=recipe.to_dict(), terms_of=config.method)
    if recipe.needs_teacher and network is None:
        if config.teacher is None and config.resume:
            raise UserError(
                f"resume: the teacher of {config.run} was given from Python as a module; give it "
                "again: aicsd.distill(module, ..., resume=True)"
            )
        if config.teacher is None:
            raise UserError(
                f"method {recipe.name!r} needs a teacher: give --teacher RUN_OR_SAFETENSORS"
            )
        network = load_model(config.teacher)
    if config.teacher_runtime in LOGITS_ALONE:
        who = f"teacher_runtime {config.teacher_runtime} gives logits alone"
        recipe.require("logits", who, "use eager or compiled")
    cache = None
    if recipe.needs_teacher and config.teacher_cache is not None:
        check_cache(recipe, config.teacher_cache_top_k)
        cache = TeacherCache(Path(config.teacher_cache), config.teacher_cache_top_k)
    teacher = None
    if network is not None:
        teacher = TeacherPlan(network, config.teacher_runtime, cache, config.teacher_classes)
    return _run(RunPlan(config, StudentPlan(config.student, student), recipe, teacher, splits))


def _run(plan: RunPlan) -> Run:
    """Hold the run folder while :func:`_train` works in it."""
    given = plan.config.data
    data = given.named() if plan.splits is None else replace(given, name=MEMORY)
    config = replace(plan.config, data=data)
    plan = plan._replace(config=config)
    folder = RunFolder(config.run)
    if config.resume:
        defaults = asdict(type(config)(run=config.run))
        folder.check_settings(asdict(config), {**defaults, "terms": plan.recipe.option_defaults})
        finished = _finished(config, folder, plan.student.module)
        if finished is not None:
            return finished
    claim = folder.claim(resume=config.resume) if is_first_process() else nullcontext()
    with claim, interruptible(lambda: _stopped(folder)):
        return _train(plan, folder)


def _stopped(folder: RunFolder) -> str:
    """Message for a signal outside of the training steps."""
    if folder.is_finished:
        return "stopped; the run is finished"
    if folder.config.is_file():
        return "stopped before the next step; continue with --resume"
    return "stopped before the first step; nothing was written"


def _finished(config: FitConfig, folder: RunFolder, module: nn.Module | None) -> Run | None:
    """The run as it is, if nothing is left to do."""
    if folder.gets_longer(asdict(config)):
        if not folder.checkpoint.is_file() and not folder.previous.is_file():
            raise UserError(
                f"resume: {folder.path} has no checkpoint to go on from for {config.epochs} epochs"
            )
        return None
    if not folder.is_finished or (config.report_images and not folder.report.is_file()):
        return None
    try:
        net = module.net if isinstance(module, Segmenter) else module
        return Run(folder.path, folder.read_result(), load_model(folder.path, net))
    except UserError:
        return None  # missing or damaged files are made again from the checkpoint


def _train(plan: RunPlan, folder: RunFolder) -> Run:
    config, recipe, splits = plan.config, plan.recipe, plan.splits
    begun = folder.checkpoint.is_file()
    remarks: list[str] = []
    if splits is None:
        splits, remarks = open_splits(config.data, check=not begun)
    elif config.data.check and not begun:
        remarks = check_splits(splits, config.data.augment)
    if not recipe.needs_teacher and not len(splits.train.labelled):
        raise UserError(
            f"no image of the split {config.data.train_split!r} has labels, and method "
            f"{recipe.name!r} learns from labels alone: give it another split, or a teacher"
        )
    fabric = open_fabric(config)
    check_graphs(config, fabric.device)
    launch(fabric)
    with ending_together(folder, fabric), enough_memory(MEMORY_ADVICE):
        return _train_together(plan, splits, remarks, folder, fabric)


def _train_together(
    plan: RunPlan,
    splits: Splits,
    remarks: Sequence[str],
    folder: RunFolder,
    fabric: Fabric,
) -> Run:
    """Training in every process, after all have connected."""
    config, planned = plan.config, plan.teacher
    batches = plan_run(config, splits.train, fabric.global_rank, fabric.world_size)
    if config.data.cache_mb:
        shared = config.data.workers > 0
        splits = splits._replace(train=CachedDataset(splits.train, config.data.cache_mb, shared))
        _say(fabric, folder, str(splits.train))
    torch.manual_seed(config.seed)
    student = plan.student.build(splits.train.classes)
    shared = shares_statistics(config.sync_bn, config.data.batch_size, fabric.world_size)
    student.require_batch(config.data.batch_size * (fabric.world_size if shared else 1))
    if shared:
        share_statistics(student)
    for note in student.notes:
        _say(fabric, folder, note)
    teacher = None
    if planned is not None:
        teacher = connect_teacher(planned.network, splits.train.classes, planned.classes)
        for note in teacher.notes:
            _say(fabric, folder, note)
    pixels = class_pixels(plan.recipe, splits.train)
    distiller = Distiller(student, plan.recipe, teacher, pixels)
    longer = config.resume and folder.gets_longer(asdict(config))
    begun_in = folder if config.resume else None
    inputs = describe_inputs(splits, batches.per_epoch, distiller.teacher, begun_in)
    if config.resume:
        check_inputs(folder, inputs)
    if planned is not None and distiller.teacher is not None:
        try_out(distiller, config.data.augment.crop, fabric.device)
        splits, further = with_teacher(planned, distiller.teacher, splits, config)
        remarks = [*remarks, *further]
    for remark in remarks:
        _say(fabric, folder, remark)
    if longer:
        _say(
            fabric,
            folder,
            f"continues to {config.epochs} epochs: from here on the learning rate "
            "and the weights of the terms follow the schedule of that many",
        )
    if fabric.is_global_zero:
        changed = changed_settings(folder, asdict(config)) if config.resume else {}
        if longer:
            folder.reopen()
        save_inputs(folder, inputs | ({"resumed_from": changed} if changed else {}))
        folder.save_config(asdict(config))
    metrics, trained = fit(config, distiller, splits.train, splits.val, batches, fabric)
    trained.eval()
    if fabric.is_global_zero and config.report_images and not folder.report.is_file():
        write_run_report(folder, trained, distiller.teacher, splits.val, config.report_images)
    return Run(folder.path, metrics, trained.cpu())


def with_teacher(
    planned: TeacherPlan, teacher: Teacher, splits: Splits, config: FitConfig
) -> tuple[Splits, list[str]]:
    """The images of a run with what its teacher adds to them, and a remark on it.

    The training images get its logits from the cache, if there is one; otherwise the teacher is
    made fast. Validation images get its labels where no image has any.
    """
    if planned.cache is not None:
        train = planned.cache.attach(splits.train, teacher, config.data.workers)
        splits = splits._replace(train=train)
    else:
        teacher.speed_up(planned.runtime, config.data.augment.crop)
    if len(splits.train.labelled) or len(splits.val.labelled):
        return splits, []
    labelled = splits._replace(val=TeacherLabelled(splits.val, teacher))
    return labelled, [
        f"no image has labels: mIoU is the agreement with the teacher on {len(splits.val)} images"
    ]


def connect_teacher(network: nn.Module, classes: Classes, class_map: str | None = None) -> Teacher:
    """A frozen teacher of the classes of the data.

    Args:
        network: a segmenter, or a module that takes images normalised by the ImageNet mean and std
            and predicts the classes in the order of the data, unless there is a class map.
        classes: classes of the data.
        class_map: map of the teacher's classes to those of the data.

    Raises:
        UserError: classes that the teacher does not predict.
    """
    if not isinstance(network, Segmenter):
        network = without_names(network)
    return Teacher(network, classes, class_map)


@torch.no_grad()
def try_out(distiller: Distiller, crop: int, device: torch.device) -> None:
    """Compute all terms on an empty image, so that unfit networks are refused before a run.

    Raises:
        UserError: a term that cannot compare the networks, or networks that fail on such an image.
    """
    distiller.to(device).eval()
    if distiller.teacher is not None:
        distiller.teacher.to(device)
    image = torch.zeros(1, 3, crop, crop, dtype=torch.uint8)
    mask = torch.zeros(1, crop, crop, dtype=torch.int64)
    try:
        distiller(Batch(image, mask, valid=mask == 0).to(device), 0.0)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(
            f"data.augment.crop is {crop}, and the networks cannot be run on such an image: "
            f"{reason}"
        ) from error
    distiller.train()


def _say(fabric: Fabric, folder: RunFolder, text: str) -> None:
    if fabric.is_global_zero:
        say(text, folder.path.name)
