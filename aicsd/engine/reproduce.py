"""Repeat a finished run from its own config, and compare the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aicsd.config import build_config
from aicsd.data.open import MEMORY
from aicsd.engine.run import connect_teacher, run_distillation, run_training
from aicsd.errors import UserError
from aicsd.files import read_json, read_json_lines
from aicsd.models import load_model
from aicsd.models.model_file import read_model_file
from aicsd.run_config import DistillConfig, TrainConfig
from aicsd.runs import RunFolder
from aicsd.teacher.cache import fingerprint

OF_THE_CLOCK = {"images_per_second", "data_wait", "seconds"}
"""Figures that no two runs have alike."""


def repeat_run(run: str | Path, out: Path) -> list[str]:
    """Train again what a run has trained, and compare.

    Args:
        run: folder of a finished run.
        out: folder for the repetition, which must be new or empty.

    Returns:
        How the two differ, a line each; nothing if weights and figures are identical.

    Raises:
        UserError: a run that has not finished, or that cannot be repeated from its config.
    """
    folder = RunFolder(run)
    changed = ", ".join(f"{key} {before}" for key, before in folder.read().resumed_from.items())
    if changed:
        raise UserError(
            f"{folder.path} went on with other settings than before ({changed}): no single "
            "training repeats it"
        )
    keys = folder.read_config()
    keys |= {"run": str(out), "resume": False, "logger": "none"}
    if keys["data"].get("name") == MEMORY:
        raise UserError(f"{folder.path} was trained on data in memory: repeat it from Python")
    if "student" in keys:
        config = build_config(DistillConfig, keys)
        if config.teacher_cache is not None and not Path(config.teacher_cache).is_dir():
            config = replace(config, teacher_cache=str(out.with_name(f"{out.name}_cache")))
        run_distillation(config)
    else:
        run_training(build_config(TrainConfig, keys))
    return list(differences(folder, RunFolder(out)))


def differences(run: RunFolder, other: RunFolder) -> Iterator[str]:
    """Differences of two finished runs: inputs, first line of the log, figures, weights."""
    if run.inputs.is_file() and other.inputs.is_file():
        before, now = read_json(run.inputs), read_json(other.inputs)
        changed = [
            key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
        ]
        if "teacher" in changed and _is_teacher_of(other, before.get("teacher")):
            changed.remove("teacher")
        if changed:
            yield f"inputs: another {', '.join(changed)}"
    yield from _first_line(run, other)
    first, second = run.read_result(), other.read_result()
    for key in sorted(first.keys() - OF_THE_CLOCK - {"teacher"}):
        if first[key] != second.get(key):
            yield f"{run.result.name}: {key} was {_short(first[key])} and is " + _short(
                second.get(key)
            )
    for name, one, two in (("model", run.model, other.model), ("best", run.best, other.best)):
        if one.is_file() or two.is_file():
            yield from _weights(name, one, two)


def _is_teacher_of(run: RunFolder, digest: str | None) -> bool:
    """Whether an earlier version gave this digest to the teacher of a run."""
    config = run.read_config()
    if digest is None or not config.get("teacher"):
        return False
    classes = load_model(run.path).classes
    teacher = connect_teacher(load_model(config["teacher"]), classes, config["teacher_classes"])
    return fingerprint(teacher.model, digest) == digest


def _first_line(run: RunFolder, other: RunFolder) -> Iterator[str]:
    """First difference between the logs."""
    lines = [_by_step(folder) for folder in (run, other)]
    for step in sorted(lines[0].keys() | lines[1].keys()):
        first, second = (each.get(step, {}) for each in lines)
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                yield (
                    f"{run.metrics.name}: first at step {step}, where {key} was "
                    f"{first.get(key)} and is {second.get(key)}"
                )
                return


def _by_step(run: RunFolder) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for line in read_json_lines(run.metrics):
        kept = {key: value for key, value in line.items() if key not in OF_THE_CLOCK}
        found.setdefault(int(line.get("step", -1)), {}).update(kept)
    return found


def _weights(name: str, one: Path, two: Path) -> Iterator[str]:
    if not (one.is_file() and two.is_file()):
        yield f"{name}: only one of the runs has it"
        return
    first, second = (read_model_file(path)[1] for path in (one, two))
    different = _different(first, second)
    if different:
        furthest = max(
            (
                float((first[key].double() - second[key].double()).abs().max())
                for key in different
                if key in first and key in second and first[key].shape == second[key].shape
            ),
            default=float("nan"),
        )
        yield (
            f"weights of {name}: {len(different)} of {len(first)} tensors, first "
            f"{different[0]}, by {furthest:.3g} at most"
        )


def _different(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        key
        for key in {**first, **second}
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
