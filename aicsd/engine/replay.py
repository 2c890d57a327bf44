"""Repeat a step that a run has kept because its loss was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from aicsd.config import build_config
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.engine.kept_step import FORMAT, Part, examine
from aicsd.engine.run import StudentPlan, connect_teacher
from aicsd.engine.run_recipe import recipe_of, recipe_of_labels
from aicsd.errors import UserError, one_line
from aicsd.files import at_home
from aicsd.models import ModelConfig, load_model
from aicsd.run_config import DistillConfig, TrainConfig
from aicsd.runs import RunFolder
from aicsd.types import Batch


class Replayed(NamedTuple):
    """A step that was repeated."""

    step: int
    """Number of the step, from 1, as in the log."""
    progress: float
    weights: dict[str, float]
    """Weights of the terms at that step."""
    parts: list[Part]
    exact: bool
    """Whether the weights are those before the step; otherwise those of the last checkpoint."""


def replay(
    file: str | Path, teacher: nn.Module | None = None, student: nn.Module | None = None
) -> Replayed:
    """Repeat the forward pass of a step that a run has kept, on the CPU.

    Args:
        file: ``nonfinite.pt`` in a run folder.
        teacher: network in place of the one that the run's config names.
        student: network in place of the one that the run's config names.

    Raises:
        UserError: another file, or one of its networks cannot be built.
    """
    path = Path(at_home(file))
    content = _read(path)
    folder = RunFolder(path.parent)
    folder.require_run()
    try:
        distiller = _rebuild(folder, content, teacher, student)
        state = content["distiller"]
        if state is None:
            checkpoint = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
            distiller.load_state_dict(checkpoint["distiller"])
        else:
            distiller.load_state_dict(state)
        bits = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.bfloat16}.get(content["precision"])
        parts = []
        for held, names in zip(content["batches"], content["names"], strict=True):
            batch = Batch(**held).to("cpu")
            with torch.autocast("cpu", bits, enabled=bits is not None):
                part = examine(distiller, batch, content["progress"], names, content["seed"])
            parts.append(part)
        weights = distiller.recipe.weights(content["progress"])
        return Replayed(content["step"] + 1, content["progress"], weights, parts, state is not None)
    except (KeyError, TypeError, RuntimeError, OSError) as error:
        reason = one_line(error)
        raise UserError(f"{file} does not fit the run in {folder.path}: {reason}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises whatever damaged bytes lead it to
        reason = one_line(error)
        raise UserError(f"{file} holds no step of a run: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file} holds no step of a run, or one of another version of aicsd")
    return content


def _rebuild(
    folder: RunFolder,
    content: Mapping[str, Any],
    network: nn.Module | None,
    student: nn.Module | None,
) -> Distiller:
    keys = folder.read_config()
    colors = tuple((int(r), int(g), int(b)) for r, g, b in content["palette"])
    classes = Classes(tuple(content["classes"]), colors)
    model: ModelConfig
    if "student" in keys:
        config = build_config(DistillConfig, keys)
        recipe, model = recipe_of(config), config.student
        if network is None and recipe.needs_teacher:
            if config.teacher is None:
                raise UserError(
                    f"the teacher of {folder.path} was given from Python: give it to "
                    "aicsd.engine.replay.replay"
                )
            network = load_model(config.teacher)
    else:
        alone = build_config(TrainConfig, keys)
        recipe, model = recipe_of_labels(alone, alone.terms), alone.model
    built = StudentPlan(model, student).build(classes)
    teacher = None
    if network is not None:
        teacher = connect_teacher(network, classes, keys.get("teacher_classes"))
    pixels = content["class_pixels"]
    return Distiller(built, recipe, teacher, None if pixels is None else tuple(pixels))
