"""Runs that the command line trained, for tests of what commands do, and what they leave."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from conftest import write_folder
from tiny_runs import NO_REPORT, aicsd, distill_command, train_command

METHOD_TERMS = {
    "none": {"cross_entropy"},
    "kd": {"cross_entropy", "pixel_kd"},
    "icsd": {"cross_entropy", "icsd"},
    "aicsd": {"cross_entropy", "icsd", "pixel_kd"},
    "ad": {"cross_entropy", "attention"},
    "sp": {"cross_entropy", "pairwise"},
    "ickd": {"cross_entropy", "correlation"},
}
MEASURES = (
    "miou",
    "pixel_accuracy",
    "class_accuracy",
    "fwiou",
    "per_class_iou",
    "per_class_accuracy",
    "images",
    "confusion",
)
LEARN = ("--optimizer.name", "adamw", "--optimizer.lr", "0.01", "--optimizer.head_lr_factor", "1")


class CommandRuns:
    """A folder with data and runs, each trained when a test first asks for it; tests only read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @cached_property
    def root(self) -> Path:
        return write_folder(self.place / "data")

    @cached_property
    def teacher(self) -> Path:
        """A run of 20 steps, validated after epochs 4, 8 and 10.

        Its images are normalised as ImageNet's are: so is what a module that says nothing gets.
        """
        run = self.place / "teacher"
        backbone = ("--model.backbone", "mobilenetv2_035")
        options = ("--epochs", "10", "--val_every", "4", *backbone, *LEARN, *NO_REPORT)
        aicsd(*train_command(self.root, run, *options))
        return run

    @cached_property
    def student(self) -> Path:
        """AICSD with settings that are not the defaults; 6 steps."""
        run = self.place / "student"
        options = ["--epochs", "3", "--seed", "5", "--terms.icsd.weight", "7",
                   "--terms.pixel_kd.weight", "2", "--student.dropout", "0.3",
                   "--data.augment.jitter", "0.4", "--report_images", "1", *LEARN]  # fmt: skip
        aicsd(*distill_command(self.root, self.teacher, run, *options))
        return run

    @cached_property
    def baseline(self) -> Path:
        """One epoch of plain training with the defaults; 2 steps."""
        run = self.place / "baseline"
        aicsd(*train_command(self.root, run, "--epochs", "1", *NO_REPORT))
        return run

    @cached_property
    def distilled(self) -> Path:
        """One epoch of AICSD with the defaults; 2 steps."""
        run = self.place / "distilled"
        options = ("--epochs", "1", "--seed", "3", *NO_REPORT)
        aicsd(*distill_command(self.root, self.teacher, run, *options))
        return run


def check(result: tuple[int, str, str]) -> str:
    code, output, error = result
    assert code == 0, error
    return output


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return result


def checkpoint_of(run: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return states
