"""A disk that is full or read-only, and a folder that is gone: one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, write_folder
from tiny_runs import NO_REPORT, aicsd, same_weights, train_command

from aicsd.engine.reporting import RunLogger


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of four steps that nothing happens to."""
    place = tmp_path_factory.mktemp("faults")
    write_folder(place / "data")
    aicsd(*command(place, place / "whole"))
    return place


def command(place: Path, run: Path, *more: object) -> list[str]:
    options = ("--epochs", "2", "--save_every", "2", *NO_REPORT, *more)
    return train_command(place / "data", run, *options)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own with the given options, or changes these."""
    mounted = tmp_path / "disk"

    def mount(options: str) -> Path:
        if mounted.is_dir():
            options = f"remount,{options}"
        mounted.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "none", str(mounted)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs the rights of an administrator")
        return mounted

    if shutil.which("mount") is None:
        pytest.skip("there is no command to mount a small disk")
    yield mount
    subprocess.run(["umount", str(mounted)], capture_output=True, check=False)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Does something after the line of a step was logged."""

    def prepare(step: int, act: Callable[[], object]) -> None:
        scalars = RunLogger.scalars

        def log_and_act(self: RunLogger, at: int, values: dict[str, Any]) -> None:
            scalars(self, at, values)
            if at == step and "loss" in values:
                act()

        monkeypatch.setattr(RunLogger, "scalars", log_and_act)

    return prepare


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, output, error = result
    assert (code, output) == (2, "")
    (line,) = [line for line in error.splitlines() if not line.startswith("run: step ")]
    assert line.startswith("aicsd: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("size", ["4k", "24k", "2m", "6m"])
def test_a_disk_that_is_too_small(
    place: Path, disk: Callable[[str], Path], run_cli: RunCli, size: str
) -> None:
    run = disk(f"size={size}") / "run"
    assert_one_line(run_cli(*command(place, run)), "cannot write", "No space left on device")
    disk("size=100m")
    resume = ["--resume"] if (run / "config.yaml").is_file() else []
    code, _, error = run_cli(*command(place, run, *resume))
    assert code == 0, error
    assert same_weights(run, place / "whole")
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("logger", ["none", "tensorboard"])
def test_a_disk_that_fills_up_stops_at_the_log(
    place: Path,
    disk: Callable[[str], Path],
    run_cli: RunCli,
    at_step: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    logger: str,
) -> None:
    run = disk("size=40m") / "run"

    def fill() -> None:
        with (run.parent / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    at_step(2, fill)
    # lines as long as a block of the disk, so that the next one does not fit into the last block
    write = RunLogger.scalars
    monkeypatch.setattr(
        RunLogger, "scalars", lambda self, at, values: write(self, at, {**values, "x": "x" * 5000})
    )
    assert_one_line(
        run_cli(*command(place, run, "--logger", logger)),
        "cannot write the logs",
        "No space left on device",
    )
    assert not failures
    monkeypatch.undo()
    (run.parent / "filler").unlink()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert same_weights(run, place / "whole")


def test_a_read_only_disk(place: Path, disk: Callable[[str], Path], run_cli: RunCli) -> None:
    run = disk("size=40m") / "run"
    shutil.copytree(place / "whole", run)
    disk("ro")
    new = run.parent / "new" / "run"
    assert_one_line(run_cli(*command(place, new)), f"run: cannot write to {new}: Read-only")
    # what is finished needs nothing written
    code, output, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert "val mIoU" in output
    result = run_cli("train", "--run", run, "--resume", "--epochs", "3")
    assert_one_line(result, f"run: cannot write to {run}: Read-only file system")


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "deleted"])
def test_a_folder_that_is_gone(
    place: Path,
    tmp_path: Path,
    run_cli: RunCli,
    at_step: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    moved: bool,
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    at_step(3, lambda: run.rename(elsewhere) if moved else shutil.rmtree(run))
    # TensorBoard may write a file into the folder while it is being deleted
    logger = "tensorboard" if moved else "none"
    result = run_cli(*command(place, run, "--logger", logger))
    assert_one_line(result, f"run: {run} was moved or deleted")
    assert not run.exists()
    monkeypatch.undo()
    if moved:
        code, _, error = run_cli("train", "--run", elsewhere, "--resume")
        assert code == 0, error
        assert same_weights(elsewhere, place / "whole")
        assert not os.path.lexists(elsewhere / ".lock")
