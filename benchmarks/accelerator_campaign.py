"""Trainings of the benchmark of methods on an accelerator, many side by side."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import run as run_process
from typing import Any, Protocol

REPOSITORY = Path(__file__).parents[1]
GRACE_SECONDS = 25
"""Seconds beside the trainings, in which their processes start and save."""
MPS_CONTROL = "nvidia-cuda-mps-control"
MPS_PLACES = ("/usr/local/nvidia/bin", "/usr/bin")
TEACHER_BACKBONE = "tf_efficientnet_lite2"


class Add(Protocol):
    """Takes a line of the report."""

    def __call__(self, part: str, name: str, status: str, **facts: Any) -> None: ...


def run(options: argparse.Namespace, add: Add) -> None:
    """Train the teacher, if asked for, then methods; say how far it came.

    Args:
        options: of the script.
        add: takes what is known.
    """
    begin = time.monotonic()
    seconds = 60 * options.minutes_campaign
    needed = ["camvid", "student.safetensors"]
    needed.append("backbone.safetensors" if options.teacher_epochs else "teacher.safetensors")
    missing = [
        name for name in needed if options.stage is None or not (options.stage / name).exists()
    ]
    if missing:
        detail = f"there is no {', '.join(missing)} in --stage"
        add("campaign", "benchmark methods", "not run", detail=detail)
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with shared_device(options.out / "mps") as shared:
        environment |= shared
        if options.teacher_epochs:
            code = run_process(
                teacher_command(options), check=False, cwd=REPOSITORY, env=environment
            ).returncode
            if code:
                add("campaign", "teacher", "error", detail=f"exit code {code}")
                return
        left = seconds - (time.monotonic() - begin) - GRACE_SECONDS
        command = command_of_methods(options, max(10.0, left))
        code = run_process(command, check=False, cwd=REPOSITORY, env=environment).returncode
    results = options.out / "campaign" / "results.json"
    cells = json.loads(results.read_text())["cells"] if results.is_file() else []
    figures = {"cells": len(cells), "seconds": round(time.monotonic() - begin, 1)}
    add(
        "campaign",
        "benchmark methods",
        "error" if code else "ok",
        figures=figures,
        detail=f"exit code {code}" if code else "",
    )


@contextmanager
def shared_device(folder: Path) -> Iterator[dict[str, str]]:
    """Variables by which processes share a GPU through NVIDIA's MPS; none where it is not there.

    Without it the kernels of one process wait while those of another run.
    """
    control = shutil.which(MPS_CONTROL, path=os.pathsep.join([os.environ["PATH"], *MPS_PLACES]))
    if control is None:
        yield {}
        return
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    environment = {**os.environ, **shared}
    started = run_process([control, "-d"], check=False, env=environment).returncode == 0
    try:
        yield shared if started else {}
    finally:
        if started:
            run_process([control], input=b"quit\n", check=False, env=environment)


def common_options(options: argparse.Namespace) -> dict[str, Any]:
    """Options of every training."""
    return {
        "val_every": 0,
        "logger": "none",
        "log_every": 50,
        "save_every": 1000,
        "report_images": 0,
        "accelerator": options.device.type,
        "cuda_graphs": options.device.type == "cuda",
    }


def teacher_command(options: argparse.Namespace) -> list[str]:
    """``aicsd train`` with the config of the CamVid teacher on a larger network."""
    stage = options.stage
    flags = {
        "config": "camvid/teacher",
        "data.root": stage / "camvid",
        "data.workers": 4,
        "data.cache_mb": 1000,
        "data.augment.crop": 320,
        "optimizer.lr": 0.001,
        "model.backbone": TEACHER_BACKBONE,
        "model.weights": stage / "backbone.safetensors",
        "epochs": options.teacher_epochs,
        "run": options.out / "teacher",
        **common_options(options),
    }
    words = (word for name, value in flags.items() for word in (f"--{name}", str(value)))
    resume = ["--resume"] if (options.out / "teacher" / "config.yaml").is_file() else []
    return [sys.executable, "-m", "aicsd", "train", *words, *resume]


def command_of_methods(options: argparse.Namespace, seconds: float) -> list[str]:
    """``aicsd benchmark methods`` on the one device, images in memory."""
    stage, out = options.stage, options.out
    teacher = out / "teacher" if options.teacher_epochs else stage / "teacher.safetensors"
    common = {
        **common_options(options),
        "epochs": options.epochs,
        "data": {"cache_mb": 1000, "workers": 1},
    }
    return [
        sys.executable,
        "-m",
        "aicsd",
        "benchmark",
        "methods",
        "--config",
        str(options.campaign),
        "--root",
        str(stage / "camvid"),
        "--teacher",
        str(teacher),
        "--weights",
        str(stage / "student.safetensors"),
        "--runs",
        str(out / "runs"),
        "--out",
        str(out / "campaign"),
        "--jobs",
        str(options.jobs),
        "--minutes",
        f"{seconds / 60:.3f}",
        "--common",
        json.dumps(common),
    ]
