"""Trainings in processes of their own, killed or told to stop, end as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import RunCli
from resumed import assert_like_reference, saved_step, small_command
from started import Ranks, Started
from tiny_runs import NO_REPORT, aicsd, data_flags, distill_command, train_command, train_lines

STEPS = 16
STEPS_OF_EPOCH = 4
SAVE_EVERY = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def root(small_reference: Path) -> Path:
    return small_reference.parent / "data"


@pytest.fixture(scope="module")
def teacher(place: Path, root: Path) -> Path:
    run = place / "teacher"
    aicsd(*train_command(root, run, "--epochs", "1", "--val_every", "0", *NO_REPORT))
    return run


@pytest.fixture(scope="module")
def command(root: Path, teacher: Path) -> Callable[[object], list[str]]:
    """The command of a run with everything that has a state; a step has two batches."""

    def build(run: object) -> list[str]:
        return distill_command(
            root, teacher, run, "--data.batch_size", "2", "--optimizer.accumulate", "2",
            "--epochs", STEPS // STEPS_OF_EPOCH, "--save_every", SAVE_EVERY, "--val_every", "3",
            "--optimizer.name", "adamw", "--optimizer.lr", "0.001", "--optimizer.ema", "0.9",
            "--student.dropout", "0.3", "--data.workers", "1", *NO_REPORT,
        )  # fmt: skip

    return build


@pytest.fixture(scope="module")
def reference(place: Path, command: Callable[[object], list[str]]) -> Path:
    """The uninterrupted run."""
    run = place / "reference"
    aicsd(*command(run))
    return run


def logged_step(run: Path) -> int:
    """The last step in metrics.jsonl, of which a line may be half written."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


def freeze_when(pid: int, ready: Callable[[], bool]) -> None:
    """Stop a process at a moment at which ``ready`` holds, and leave it stopped."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert is_running(pid), "too early an end"
        if ready():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.02)
            if ready():
                return
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError("not within the time")


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.is_file() else []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def orphans() -> Iterator[list[int]]:
    """Loader processes of killed trainings: none may be left when this module is done.

    They look for their training every 5 seconds, in which other tests run.
    """
    found: list[int] = []
    yield found
    end = time.monotonic() + 20
    while any(map(is_running, found)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in found if is_running(pid)]


def test_killed_in_mid_epoch(
    tmp_path: Path,
    command: Callable[[object], list[str]],
    reference: Path,
    run_cli: RunCli,
    orphans: list[int],
) -> None:
    run = tmp_path / "run"

    def beyond_a_checkpoint() -> bool:
        step = logged_step(run)
        return step > 2 * SAVE_EVERY and step % SAVE_EVERY != 0 and step % STEPS_OF_EPOCH != 0

    with Started(command(run), tmp_path / "log") as process:
        freeze_when(process.pid, beyond_a_checkpoint)
        orphans += children(process.pid)
        assert orphans
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 0 < saved_step(run) < logged_step(run) < STEPS
    assert not (run / "model.safetensors").exists()
    code, _, error = run_cli("distill", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, reference)


@pytest.mark.slow
def test_told_to_stop_in_mid_epoch(
    tmp_path: Path,
    command: Callable[[object], list[str]],
    reference: Path,
    run_cli: RunCli,
) -> None:
    """Started as a user does; the end of the interpreter is part of what is tested."""
    run, log = tmp_path / "run", tmp_path / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "aicsd", *command(run)],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        # as a terminal and a cluster do: the workers get it too
        freeze_when(process.pid, lambda: logged_step(run) > STEPS_OF_EPOCH and saved_step(run) > 0)
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.wait()
    step = saved_step(run)
    assert STEPS_OF_EPOCH < step < STEPS
    assert train_lines(run)[-1]["step"] == step
    assert log.read_text().splitlines()[-1] == (
        f"aicsd: stopped at step {step} of {STEPS}; continue with --resume"
    )
    assert "Traceback" not in log.read_text()
    assert not (run / "metrics.json").exists()
    code, _, error = run_cli("distill", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, reference)


def test_training_goes_on_when_nothing_takes_its_lines(
    root: Path, small_reference: Path, tmp_path: Path
) -> None:
    """As with ``2>&1 | head -1``, and after a hang-up under nohup."""
    command = small_command(root, tmp_path / "run")
    with Started(command, tmp_path / "log", deaf=True) as process:
        assert process.wait() == 0
    assert_like_reference(tmp_path / "run", small_reference)


def test_two_processes(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Each takes half of every batch; three validation images are counted once each."""
    run = tmp_path / "run"
    flags = ["--devices", "2", "--data.batch_size", "2", "--epochs", "2", "--val_every", "0"]
    with Ranks(train_command(root, run, *flags), tmp_path / "log") as ranks:
        assert ranks.wait() == [0, 0], ranks.error
    steps = train_lines(run)
    # 16 images in steps of two times two
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [line["epoch"] for line in steps] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert saved_step(run) == 8
    result = json.loads((run / "metrics.json").read_text())
    assert result["images"] == 3
    out = tmp_path / "single.json"
    code, _, error = run_cli("evaluate", run, *data_flags(root), "--json", out)
    assert code == 0, error
    single = json.loads(out.read_text())
    assert {name: result[name] for name in single} == single
