"""aicsd train, aicsd distill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aicsd.cli.parser import Command
from aicsd.config import parse_text
from aicsd.messages import say
from aicsd.methods.shipped import list_methods
from aicsd.run_config import DistillConfig, TrainConfig
from aicsd.runs import RunFolder

COMMON = (
    "run",
    "resume",
    "data.name",
    "data.root",
    "data.batch_size",
    "data.augment.crop",
    "optimizer.name",
    "optimizer.lr",
    "epochs",
    "seed",
    "accelerator",
    "devices",
    "precision",
    "logger",
)
NETWORK = ("backbone", "output_stride", "weights")


def train(config: TrainConfig) -> int:
    from aicsd.engine.run import run_training

    return _run(lambda: run_training(config))


def distill(config: DistillConfig) -> int:
    from aicsd.engine.run import run_distillation

    return _run(lambda: run_distillation(config))


def _run(training: Callable[[], Any]) -> int:
    from aicsd.engine.peers import EndedElsewhereError
    from aicsd.engine.reporting import score_text
    from aicsd.engine.stop import Interrupted

    try:
        run = training()
    except Interrupted as stop:
        if str(stop):
            say(str(stop))
        return 130
    except EndedElsewhereError:
        return 2
    print(
        f"{run.path}: val mIoU {score_text(run.metrics['miou'])}, "
        f"{run.metrics['parameters'] / 1e6:.2f} M parameters, "
        f"{run.metrics['seconds']:.0f} s of training"
    )
    return 0


def _saved_config(flags: Mapping[str, Any]) -> Path | None:
    """The config in the run folder, for ``--run R --resume`` alone."""
    if "run" not in flags or parse_text(str(flags.get("resume"))) is not True:
        return None
    folder = RunFolder(flags["run"])
    folder.check_place(resume=True)
    return folder.config


def _of_one_family(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``below`` without the keys of networks of another family than ``above`` names."""
    kept = dict(below)
    for section in ("model", "student"):
        held, given = below.get(section), above.get(section)
        if isinstance(held, Mapping) and isinstance(given, Mapping) and "family" in given:
            from aicsd.models.sources import without_other_family

            kept[section] = without_other_family(held, given["family"])
            left = [f"{section}.{key}" for key in held if key not in kept[section]]
            if left:
                say(
                    f"note: {section}.family {given['family']} leaves out "
                    f"{', '.join(left)} of the config"
                )
    return kept


TRAIN = Command(
    TrainConfig,
    train,
    (*COMMON, "model", *(f"model.{key}" for key in NETWORK)),
    "aicsd train --config folder/teacher --data.root my_data --run runs/teacher",
    base=_saved_config,
    beneath=_of_one_family,
)
DISTILL = Command(
    DistillConfig,
    distill,
    (
        "teacher",
        "teacher_classes",
        "method",
        "terms",
        *COMMON,
        "student",
        *(f"student.{key}" for key in NETWORK),
    ),
    "aicsd distill --config folder/aicsd --data.root my_data --teacher runs/teacher --run runs/kd",
    notes={"method": ", ".join(list_methods())},
    base=_saved_config,
    beneath=_of_one_family,
)
