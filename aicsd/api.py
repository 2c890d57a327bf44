"""From a config to a trained run: what the command line does, in one call."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from aicsd.config import build_config
from aicsd.data import check_dataset, open_dataset
from aicsd.data.base import SegDataset
from aicsd.data.cache import CachedDataset
from aicsd.data.loaders import epoch_indices, plan_batches, training_images
from aicsd.distiller import Distiller
from aicsd.engine import DistillConfig, FitConfig, TrainConfig, fit
from aicsd.engine.teacher_cache import check_recipe
from aicsd.errors import UserError
from aicsd.methods import Recipe, load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model, load_model
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.teacher.runtime import Runtime
from aicsd.types import Batch
from aicsd.visualization.ics_history import read_history
from aicsd.visualization.report import write_report
from aicsd.visualization.runs import Network

REPORT_IMAGES = 6


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    metrics: dict[str, Any]
    """Of the final student on the validation split: what ``metrics.json`` holds."""
    student: Segmenter
    """In evaluation mode."""


def train(
    model: str | Mapping[str, Any] = "resnet18",
    data: str | Path | Mapping[str, Any] = "digits",
    run: str | Path = "runs/train",
    **options: Any,
) -> Run:
    """Train a network on labels alone.

    Args:
        model: timm backbone, or the keys of ``ModelConfig``.
        data: name of a dataset (``digits``), a folder in the layout of ``aicsd.data.folder``, or
            the keys of ``DataConfig``.
        run: folder that gets everything.
        **options: any other key of ``aicsd train``, such as ``epochs=30`` or
            ``optimizer={"name": "adamw", "lr": 0.001}``.

    Raises:
        UserError: anything in the input that the user can mend, as on the command line.
    """
    keys = {"model": _model_keys(model), "data": _data_keys(data), "run": str(run), **options}
    return run_training(build_config(TrainConfig, keys))


def distill(
    teacher: str | Path | Segmenter | nn.Module | None,
    student: str | Mapping[str, Any] = "mobilenetv2_050",
    data: str | Path | Mapping[str, Any] = "digits",
    method: str = "aicsd",
    run: str | Path = "runs/distill",
    **options: Any,
) -> Run:
    """Distil a teacher into a student.

    Args:
        teacher: run folder, model file or checkpoint of the published code; or a network. A plain
            ``nn.Module`` takes images normalised by the ImageNet mean and std, returns logits
            (B, C, h, w), and knows the classes of the data in their order.
        student: timm backbone, or the keys of ``ModelConfig``.
        data: as in :func:`train`.
        method: ``none``, ``kd``, ``icsd``, ``aicsd``, ``ad``, ``sp``, ``ickd``, or the path of a
            recipe.
        run: folder that gets everything.
        **options: any other key of ``aicsd distill``, such as ``terms={"icsd": {"weight": 50}}``.

    Raises:
        UserError: anything in the input that the user can mend, as on the command line.
    """
    network = teacher if isinstance(teacher, nn.Module) else None
    keys = {
        "teacher": None if network is not None or teacher is None else str(teacher),
        "student": _model_keys(student),
        "data": _data_keys(data),
        "method": method,
        "run": str(run),
        **options,
    }
    return run_distillation(build_config(DistillConfig, keys), network)


def run_training(config: TrainConfig) -> Run:
    """What ``aicsd train`` does."""
    return _run(config, config.model, of_protocol(load_recipe("none"), config))


def run_distillation(config: DistillConfig, network: nn.Module | None = None) -> Run:
    """What ``aicsd distill`` does; ``network`` is a teacher that is in memory already."""
    recipe = of_protocol(load_recipe(config.method, config.terms), config)
    config = replace(config, terms=recipe.to_dict())
    if recipe.needs_teacher and network is None:
        if config.teacher is None:
            raise UserError(
                f"method {recipe.name!r} needs a teacher: give --teacher RUN_OR_SAFETENSORS"
            )
        network = load_model(config.teacher)
    if config.teacher_runtime == "openvino":
        who = "teacher_runtime openvino gives logits alone"
        recipe.require("logits", who, "use eager or compiled")
    cache = None
    if recipe.needs_teacher and config.teacher_cache is not None:
        check_recipe(recipe, config.teacher_cache_top_k)
        cache = TeacherCache(Path(config.teacher_cache), config.teacher_cache_top_k)
    return _run(config, config.student, recipe, network, config.teacher_runtime, cache)


def of_protocol(recipe: Recipe, config: FitConfig) -> Recipe:
    """``recipe`` with the numerics of the config's protocol."""
    return recipe.with_numerics("released") if config.protocol == "released" else recipe


def _run(
    config: FitConfig,
    model: ModelConfig,
    recipe: Recipe,
    network: nn.Module | None = None,
    runtime: Runtime = "eager",
    cache: TeacherCache | None = None,
) -> Run:
    path = Path(config.run)
    folder = RunFolder(path)
    _claim(config, folder)
    data = config.data
    train_data = open_dataset(data.name, data.root, data.train_split, data.options)
    val_data = open_dataset(data.name, data.root, data.val_split, data.options)
    if data.check and not folder.checkpoint.is_file():
        for dataset in (train_data, val_data):
            for problem in check_dataset(dataset):
                raise UserError(f"{problem} (aicsd data check lists every such file)")
    train_data = training_images(train_data, data)
    fabric = open_fabric(config)
    fabric.launch()
    # refuses what makes no batch; here, so that no run folder is left behind
    plan_batches(
        len(epoch_indices(train_data, data)), data, config.seed, config.epochs,
        config.optimizer.accumulate, fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    if data.cache_mb:
        train_data = CachedDataset(train_data, data.cache_mb, shared=data.workers > 0)
        if fabric.is_global_zero:
            print(f"{path.name}: {train_data}", file=sys.stderr)
    torch.manual_seed(config.seed)
    student = build_model(model, train_data.classes)
    student.require_batch(data.batch_size)
    unused = getattr(student.net.backbone, "dropped_weights", [])
    if unused and fabric.is_global_zero:
        print(
            f"{path.name}: {model.weights}: every key of the feature layers is used; left out, of "
            f"the classification head: {', '.join(unused)}",
            file=sys.stderr,
        )
    teacher = loaded = None
    if network is not None:
        if not isinstance(network, Segmenter):
            network = Segmenter(network, train_data.classes)
        teacher = Teacher(network, train_data.classes)
        loaded = teacher.model
    distiller = Distiller(student, recipe, teacher)
    if teacher is not None:
        _try_out(distiller, data.augment.crop, fabric.device)
        if cache is not None:
            train_data = cache.attach(train_data, teacher, data.workers)
        else:
            teacher.speed_up(runtime, data.augment.crop)
    if fabric.is_global_zero:
        folder.save_config(asdict(config))
    metrics = fit(config, distiller, train_data, val_data, fabric)
    trained = load_model(path)
    if fabric.is_global_zero and not folder.report.is_file():
        _report(folder, trained.to(fabric.device), loaded, val_data)
    return Run(path, metrics, trained.cpu())


def _report(
    folder: RunFolder, student: Segmenter, teacher: Segmenter | None, val_data: SegDataset
) -> None:
    """Write the report; whatever goes wrong with it must not fail a training that is done."""
    try:
        run = folder.read()
        history = read_history(folder.path)
        networks = [Network(run.title, student, run.result, run, history=history)]
        if teacher is not None:
            measured = run.result["teacher"]
            networks.insert(0, Network("teacher", teacher, measured, None, is_teacher=True))
        write_report(folder.report, networks, val_data, images=REPORT_IMAGES)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        print(f"{folder.path.name}: no {folder.report.name}: {reason}", file=sys.stderr)


@torch.no_grad()
def _try_out(distiller: Distiller, crop: int, device: torch.device) -> None:
    """All terms on an empty image: networks that a term cannot compare are refused before a run."""
    distiller.to(device).eval()
    if distiller.teacher is not None:
        distiller.teacher.to(device)
    image = torch.zeros(1, 3, crop, crop, dtype=torch.uint8)
    mask = torch.zeros(1, crop, crop, dtype=torch.int64)
    distiller(Batch(image, mask, valid=mask == 0).to(device), 0.0)
    distiller.train()


def open_fabric(config: FitConfig) -> Fabric:
    """Device, number of processes and precision of a config; not launched yet.

    Raises:
        UserError: this machine does not have them.
    """
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"accelerator {config.accelerator!r} with devices {config.devices} cannot be used "
            f"here: {reason}"
        ) from error
    if config.precision == "bf16-mixed" and _emulates_bfloat16(fabric.device):
        print(
            "aicsd: note: this processor has no instructions for bfloat16: precision bf16-mixed "
            "will be many times slower than 32-true",
            file=sys.stderr,
        )
    return fabric


def _emulates_bfloat16(device: torch.device) -> bool:
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and on_x86 and not torch.cpu._is_avx512_bf16_supported()


def _claim(config: FitConfig, folder: RunFolder) -> None:
    """Refuse to write over another run; check that a resumed one has the same settings."""
    path = folder.path
    if config.resume:
        folder.check_settings(asdict(config), asdict(type(config)(run=config.run)))
    elif path.exists() and (not path.is_dir() or any(os.scandir(path))):
        raise UserError(
            f"run: {path} exists; choose another folder, or add --resume to continue the run in it"
        )


def _model_keys(model: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"backbone": model} if isinstance(model, str) else dict(model)


def _data_keys(data: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(data, str) and data == "digits":
        return {"name": "digits"}
    if isinstance(data, str | Path):
        return {"name": "folder", "root": str(data)}
    return dict(data)
