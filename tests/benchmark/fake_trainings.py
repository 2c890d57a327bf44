"""A benchmark of methods without a start of Python for each training: its file, and runs that are
finished at once or forked."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL, RunCli
from started import Started

from aicsd.benchmark import methods_run
from aicsd.benchmark.statistics import miou, parts_of
from aicsd.config import build_config
from aicsd.engine.run_recipe import recipe_of
from aicsd.evaluation import ImageCounts
from aicsd.run_config import DistillConfig
from aicsd.runs import RunFolder

DATA = {"name": "folder", "batch_size": 4, "workers": 0, "augment": {"crop": 32}}
GAINS = {"none": 0.0, "kd": 0.02, "aicsd": 0.03, "icsd": -0.01}
RATES = {"none": 100.0, "kd": 80.0, "aicsd": 50.0, "icsd": 98.0}
"""Results of the fake trainings: points over the student alone, images per second."""


def write_file(folder: Path, **keys: Any) -> Path:
    """A benchmark of two rows on a dataset and a teacher that need not be there."""
    content = {
        "common": {"teacher": "teacher", "epochs": 10, "data": {**DATA, "root": "data"}},
        "students": {"small": TINY_MODEL},
        "methods": {"none": None, "kd": None},
        **keys,
    }
    path = folder / "benchmark.yaml"
    path.write_text(json.dumps(content))  # which is YAML, without aliases
    return path


def matrices(level: float, images: int = 6) -> np.ndarray:
    """Counts of images of which a share of ``level`` of the pixels is right."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(400, 1600, (images, 3))
    right = np.rint(level * sizes + rng.normal(0, 5, sizes.shape)).astype(int)
    found = np.zeros((images, 3, 3), int)
    for image in range(images):
        for label in range(3):
            found[image, label, label] = right[image, label]
            found[image, label, (label + 1) % 3] = sizes[image, label] - right[image, label]
    return found


class FakeTraining:
    """In the place of ``aicsd distill`` in a process: leaves a finished run at once."""

    started: list[Path]
    at_once: int
    broken: str
    unlabelled: bool
    teacher: float

    def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
        words = dict(zip(command[4::2], command[5::2], strict=False))
        keys = yaml.safe_load(Path(words["--config"]).read_text())
        self.folder = RunFolder(words["--run"])
        type(self).started.append(self.folder.path)
        self.code: int | None = None
        if self.broken and self.folder.path.name.startswith(self.broken):
            stdout.write(b"step 3\naicsd: error: the disk is full\n")
            self.code = 2
            return
        config = build_config(DistillConfig, {**keys, "run": str(self.folder.path)})
        recipe = recipe_of(config)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.save_config(asdict(replace(config, terms=recipe.to_dict())))
        level = 0.5 + GAINS[config.method] + 0.004 * config.seed + 1e-4 * config.epochs
        level += 0.01 * (config.method == "kd" and recipe.terms["pixel_kd"].weight == 0.6)
        counts = ImageCounts([str(image) for image in range(6)], 3)
        for image, matrix in enumerate(matrices(level) * (not self.unlabelled)):
            counts.add(image, torch.from_numpy(matrix))
        counts.save(self.folder.image_counts)
        score = float(miou(parts_of(matrices(level).sum(axis=0))))
        result = {
            "miou": score,
            "class_accuracy": level,
            "pixel_accuracy": level,
            "images": 6,
            "parameters": 1000,
            "per_class_iou": {"a": 0.1, "b": 0.2, "c": None},
            "seconds": 9.0,
            "teacher": None,
        }
        if recipe.needs_teacher:
            result["teacher"] = {"miou": self.teacher + 1e-7 * config.seed}
        if self.unlabelled:
            result |= {"miou": None, "class_accuracy": None, "pixel_accuracy": None}
            result["teacher"] = {"miou": None}
        self.folder.result.write_text(json.dumps(result))
        rates = [
            {"step": s, "loss": 1.0, "images_per_second": RATES[config.method]} for s in (1, 2)
        ]
        rates.append({"step": 3, "loss": 1.0, "images_per_second": 1e-3})  # it was interrupted
        self.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in rates))
        self.code = 0

    def poll(self) -> int | None:
        return self.code


class ForkedTraining:
    """In the place of a start of Python: the same command, forked from a server."""

    def __init__(self, command: list[str], stdout: Any, env: dict[str, str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-c", methods_run.RUN_AICSD]
        place = Path(mkdtemp(dir=Path(stdout.name).parents[1])) / "log"
        self._started = Started(command[3:], place, env)
        self.send_signal = partial(os.kill, self._started.pid)
        self.wait = self._started.wait

    def poll(self) -> int | None:
        return self._started.process.exitcode


def fake_trainings(monkeypatch: pytest.MonkeyPatch) -> type[FakeTraining]:
    FakeTraining.started, FakeTraining.broken = [], ""
    FakeTraining.unlabelled, FakeTraining.teacher = False, 0.6
    monkeypatch.setattr(methods_run, "Popen", FakeTraining)
    monkeypatch.setattr(methods_run, "POLL_SECONDS", 0.001)
    return FakeTraining


def run(place: Path, path: Path, run_cli: RunCli, *more: object) -> tuple[int, str, str]:
    folders = ("--runs", place / "runs", "--out", place / "out")
    return run_cli("benchmark", "methods", "--config", path, *folders, *more)


def names(trainings: type[FakeTraining]) -> list[str]:
    return [path.name for path in trainings.started]


def row_of(place: Path, name: str) -> dict[str, str]:
    text = (place / "out" / "table.csv").read_text()
    return next(row for row in csv.DictReader(io.StringIO(text)) if row["method"] == name)
