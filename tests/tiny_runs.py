"""Shared parts of command-line tests: flags of tiny runs, and files of runs."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL
from safetensors.torch import load_file
from started import TIMEOUT, Started

FIT_FLAGS = (
    "--data.workers", "0", "--data.augment.crop", "32", "--accelerator", "cpu", "--log_every", "1",
)  # fmt: skip


NO_REPORT = ("--report_images", "0")
"""Half of the time of a tiny run is its report."""


def data_flags(root: object) -> list[str]:
    return ["--data.name", "folder", "--data.root", str(root)]


def model_flags(key: str) -> list[str]:
    """``key`` is model or student."""
    return [part for name, value in TINY_MODEL.items() for part in (f"--{key}.{name}", str(value))]


def train_command(root: object, run: object, *more: object) -> list[str]:
    flags = [*data_flags(root), "--data.batch_size", "4", *FIT_FLAGS, *model_flags("model")]
    return ["train", *flags, "--run", str(run), *map(str, more)]


def distill_command(root: object, teacher: object, run: object, *more: object) -> list[str]:
    flags = [*data_flags(root), "--data.batch_size", "4", *FIT_FLAGS, *model_flags("student")]
    return ["distill", *flags, "--teacher", str(teacher), "--run", str(run), *map(str, more)]


def aicsd(*arguments: object) -> str:
    """Call the command line in this process, for fixtures that outlive a test; standard output."""
    from aicsd.cli import main

    output, error = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(output),
        redirect_stderr(error),
        pytest.raises(SystemExit) as stop,
    ):
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0, error.getvalue()
    return output.getvalue()


@contextmanager
def stopping_at(step: int, key: str = "loss", number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal while it writes a line of the log that has ``key``."""
    from aicsd.engine.reporting import RunLogger

    write = RunLogger.scalars

    def write_and_signal(self: RunLogger, at: int, values: dict[str, Any]) -> None:
        write(self, at, values)
        if at == step and key in values:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogger, "scalars", write_and_signal)
        yield


def fork_cli(arguments: list[str], log: Path) -> ForkProcess:
    """Start the command line in a process of its own, which has everything imported."""
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(arguments, log))
    process.start()
    return process


def _in_child(arguments: list[str], log: Path) -> None:
    from aicsd.cli import main

    cv2.setNumThreads(0)  # threads of the parent are not there
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main(arguments)


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the trained students of two runs are equal bit for bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def step_difference(one: Path, other: Path) -> float:
    """Difference of two runs of one step without dropout, relative to the change by the step."""
    from aicsd.data import Classes
    from aicsd.models import ModelConfig, build_model

    torch.manual_seed(0)
    config = ModelConfig(**{**TINY_MODEL, "dropout": 0.0})
    start = build_model(config, Classes(CLASS_NAMES, ((0, 0, 0),) * len(CLASS_NAMES))).net
    first, second = weights(one), weights(other)
    changed = {name: first[name] - value for name, value in start.state_dict().items()}
    apart = sum(float((second[n] - first[n]).double().square().sum()) for n in changed)
    return float((apart / sum(float(c.double().square().sum()) for c in changed.values())) ** 0.5)


def lines(run: Path) -> list[dict[str, Any]]:
    """Everything in ``metrics.jsonl``."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "loss" in line]


def wait_for(run: Path, steps: int, *processes: Started) -> None:
    """Until ``steps`` are logged; fails at once if one of the processes that train has ended."""
    end = time.monotonic() + TIMEOUT
    while not (run / "metrics.jsonl").is_file() or len(train_lines(run)) < steps:
        for process in processes:
            assert process.process.is_alive(), process.error
        assert time.monotonic() < end, f"step {steps} was not logged in {TIMEOUT} s"
        time.sleep(0.1)


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Path and time of change of every file, and every folder."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder)), path.stat().st_mtime_ns if path.is_file() else 0


def explanation(name: str, help_text: str) -> str:
    """The words behind ``name`` in the list of options, without type and default."""
    entry = re.search(
        rf"^  {re.escape(name)}(?: [^\n]*?)?(?:\n|  )(.*?)(?=^  \S|^\S|^\n|\Z)",
        help_text,
        re.DOTALL | re.MULTILINE,
    )
    words = "" if entry is None else " ".join(entry.group(1).split())
    return re.sub(r"\((?:default: .*|required)\)$", "", words).strip()
