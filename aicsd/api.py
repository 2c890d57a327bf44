"""Train and distil from Python: what the commands do, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn

from aicsd.config import build_config
from aicsd.data.splits import Data, data_settings
from aicsd.engine.run import Run, run_distillation, run_training
from aicsd.models import Segmenter
from aicsd.models.settings import ModelConfig
from aicsd.run_config import DistillConfig, OptimizerConfig, Precision, TrainConfig
from aicsd.types import OWN_MODULE, EvaluationProtocol, Runtime


class TrainOptions(TypedDict, total=False):
    """Keys of :class:`aicsd.run_config.TrainConfig`, where they are explained."""

    optimizer: OptimizerConfig | Mapping[str, Any]
    epochs: int
    val_every: int
    save_every: int
    log_every: int
    logger: str
    report_images: int
    seed: int
    resume: bool
    accelerator: str
    devices: int
    num_nodes: int
    sync_bn: bool | None
    precision: Precision
    cuda_graphs: bool
    protocol: EvaluationProtocol
    terms: Mapping[str, Mapping[str, Any]]


class DistillOptions(TrainOptions, total=False):
    """Keys of :class:`aicsd.run_config.DistillConfig`, where they are explained."""

    teacher_classes: str | None
    force_teacher: bool
    in_benchmark: bool
    teacher_runtime: Runtime
    teacher_cache: str | None
    teacher_cache_top_k: int
    terms_of: str | None


def train(
    model: str | Mapping[str, Any] | nn.Module = "resnet18",
    data: Data = "digits",
    run: str | Path = "runs/train",
    **options: Unpack[TrainOptions],
) -> Run:
    """Train a network on labels alone.

    Args:
        model: timm backbone, the keys of ``ModelConfig``, or a module that returns logits: see
            :func:`aicsd.models.wrap_module`.
        data: name of a dataset, a folder, the keys of ``DataConfig``, or datasets in memory:
            ``Splits(train, val)``, or these two beside other keys.
        run: folder that gets everything.
        **options: any other key of ``aicsd train``, such as ``epochs=30`` or
            ``optimizer={"name": "adamw", "lr": 0.001}``.

    Raises:
        UserError: anything in the input that the user can fix, as on the command line.
    """
    data_keys, splits = data_settings(data)
    keys = {"model": _model_keys(model), "data": data_keys, "run": str(run), **options}
    return run_training(build_config(TrainConfig, keys), splits, _module(model))


def distill(
    teacher: str | Path | Segmenter | nn.Module | None,
    student: str | Mapping[str, Any] | nn.Module = "mobilenetv2_050",
    data: Data = "digits",
    method: str = "aicsd",
    run: str | Path = "runs/distill",
    losses: Mapping[str, type[nn.Module]] | None = None,
    **options: Unpack[DistillOptions],
) -> Run:
    """Distil a teacher into a student.

    Args:
        teacher: run folder, model file or checkpoint of the released code; or a network. A plain
            ``nn.Module`` takes images normalised by the ImageNet mean and std, returns logits
            (B, C, h, w), and predicts the classes of the data in their order.
        student: as ``model`` of :func:`train`.
        data: as in :func:`train`.
        method: one of :func:`list_methods`, or the path of a recipe.
        run: folder that gets everything.
        losses: losses of your own by name, which a recipe then names with the key ``loss``.
        **options: any other key of ``aicsd distill``, such as ``terms={"icsd": {"weight": 50}}``.

    Raises:
        UserError: anything in the input that the user can fix, as on the command line.
    """
    network = teacher if isinstance(teacher, nn.Module) else None
    data_keys, splits = data_settings(data)
    keys = {
        "teacher": None if network is not None or teacher is None else str(teacher),
        "student": _model_keys(student),
        "data": data_keys,
        "method": method,
        "run": str(run),
        **options,
    }
    config = build_config(DistillConfig, keys)
    return run_distillation(config, network, splits, losses, _module(student))


def _module(model: str | Mapping[str, Any] | nn.Module) -> nn.Module | None:
    return model if isinstance(model, nn.Module) else None


def _model_keys(model: str | Mapping[str, Any] | nn.Module) -> dict[str, Any]:
    if isinstance(model, nn.Module):
        return {"family": OWN_MODULE}
    if isinstance(model, str):
        return ModelConfig.presets().get(model) or {"backbone": model}
    return dict(model)
