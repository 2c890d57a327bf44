"""Train and distil from Python: what the commands do, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from aicsd.config import build_config
from aicsd.data.base import SegDataset
from aicsd.engine.config import DistillConfig, TrainConfig
from aicsd.engine.run import Run, Splits, run_distillation, run_training
from aicsd.models import Segmenter

Data = str | Path | Mapping[str, Any] | Splits | tuple[SegDataset, SegDataset]


def train(
    model: str | Mapping[str, Any] = "resnet18",
    data: Data = "digits",
    run: str | Path = "runs/train",
    **options: Any,
) -> Run:
    """Train a network on labels alone.

    Args:
        model: timm backbone, or the keys of ``ModelConfig``.
        data: name of a dataset (``digits``), a folder in the layout of ``aicsd.data.folder``, the
            keys of ``DataConfig``, or two datasets in memory: to train on and to validate on.
        run: folder that gets everything.
        **options: any other key of ``aicsd train``, such as ``epochs=30`` or
            ``optimizer={"name": "adamw", "lr": 0.001}``.

    Raises:
        UserError: anything in the input that the user can fix, as on the command line.
    """
    keys = {"model": _model_keys(model), "data": _data_keys(data), "run": str(run), **options}
    return run_training(build_config(TrainConfig, keys), _splits(data))


def distill(
    teacher: str | Path | Segmenter | nn.Module | None,
    student: str | Mapping[str, Any] = "mobilenetv2_050",
    data: Data = "digits",
    method: str = "aicsd",
    run: str | Path = "runs/distill",
    losses: Mapping[str, type[nn.Module]] | None = None,
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
        losses: losses of your own by name, which a recipe then names with the key ``loss``.
        **options: any other key of ``aicsd distill``, such as ``terms={"icsd": {"weight": 50}}``.

    Raises:
        UserError: anything in the input that the user can fix, as on the command line.
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
    return run_distillation(build_config(DistillConfig, keys), network, _splits(data), losses)


def _model_keys(model: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"backbone": model} if isinstance(model, str) else dict(model)


def _splits(data: Data) -> Splits | None:
    return Splits(*data) if isinstance(data, tuple) else None


def _data_keys(data: Data) -> dict[str, Any]:
    if isinstance(data, tuple):
        return {}
    if isinstance(data, str) and data == "digits":
        return {"name": "digits"}
    if isinstance(data, str | Path):
        return {"name": "folder", "root": str(data)}
    return dict(data)
