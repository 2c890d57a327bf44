"""A run that was cut at any point and resumed ends bit for bit as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_folder
from lightning_fabric.plugins.precision import Precision
from tiny_runs import (
    aicsd,
    data_flags,
    distill_command,
    files_below,
    lines,
    same_weights,
    train_command,
    train_lines,
    weights,
)

from aicsd.engine.reporting import RunLogger
from aicsd.engine.stop import stop_signal

RunCli = Callable[..., tuple[int, str, str]]

STEPS = 24
STEPS_OF_EPOCH = 4
SAVE_EVERY = 3
SPEED = ("images_per_second", "data_wait")
"""What depends on the clock."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def root(place: Path) -> Path:
    return write_folder(place / "data", {"train": 16, "val": 3})


@pytest.fixture(scope="module")
def teacher(place: Path, root: Path) -> Path:
    run = place / "teacher"
    aicsd(*train_command(root, run, "--epochs", "1", "--val_every", "0"))
    return run


@pytest.fixture(scope="module")
def command(root: Path, teacher: Path) -> Callable[[object], list[str]]:
    """The command of a run with everything that has a state: 24 steps of two batches."""

    def build(run: object) -> list[str]:
        return distill_command(
            root, teacher, run, "--data.batch_size", "2", "--optimizer.accumulate", "2",
            "--epochs", STEPS // STEPS_OF_EPOCH, "--save_every", SAVE_EVERY, "--val_every", "5",
            "--optimizer.name", "adamw", "--optimizer.lr", "0.001", "--optimizer.ema", "0.9",
            "--student.dropout", "0.3", "--data.workers", "1",
        )  # fmt: skip

    return build


@pytest.fixture(scope="module")
def reference(place: Path, command: Callable[[object], list[str]]) -> Path:
    """The run that nobody cuts."""
    run = place / "reference"
    aicsd(*command(run))
    return run


def assert_like_reference(run: Path, reference: Path) -> None:
    assert same_weights(run, reference)
    assert same_weights_of(run, reference, "best.safetensors")
    found, wanted = lines(run), lines(reference)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        assert without(line, *SPEED) == without(other, *SPEED)
    results = [json.loads((path / "metrics.json").read_text()) for path in (run, reference)]
    assert without(results[0], "seconds") == without(results[1], "seconds")


def same_weights_of(one: Path, other: Path, name: str) -> bool:
    first, second = weights(one, name), weights(other, name)
    return all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())


def without(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in names}


def saved_step(run: Path) -> int:
    checkpoint = run / "checkpoints" / "last.pt"
    if not checkpoint.is_file():
        return 0
    step: int = torch.load(checkpoint, weights_only=True)["progress"]["step"]
    return step


def logged_step(run: Path) -> int:
    """The last step in metrics.jsonl, of which a line may be half written."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return int(json.loads(whole[-1])["step"]) if whole else 0


class Process:
    """A command in a process of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "aicsd", *arguments],
                stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        return self.popen.wait(timeout=120)

    def output(self) -> str:
        return self.log.read_text()

    def freeze_when(self, ready: Callable[[], bool]) -> None:
        """Stop the process at a moment at which ``ready`` holds, and leave it stopped."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert self.popen.poll() is None, f"too early an end:\n{self.output()}"
            if ready():
                self.signal(signal.SIGSTOP)
                time.sleep(0.02)
                if ready():
                    return
                self.signal(signal.SIGCONT)
            time.sleep(0.002)
        raise AssertionError(f"not within the time:\n{self.output()}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Process]]:
    started: list[Process] = []

    def begin(arguments: list[str]) -> Process:
        started.append(Process(arguments, tmp_path / f"output{len(started)}.txt"))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.is_file() else []


# cut by the system


def test_killed_in_mid_epoch(
    tmp_path: Path,
    command: Callable[[object], list[str]],
    reference: Path,
    start: Callable[[list[str]], Process],
    run_cli: RunCli,
) -> None:
    run = tmp_path / "run"
    process = start(command(run))

    def beyond_a_checkpoint() -> bool:
        step = logged_step(run)
        return step > 2 * SAVE_EVERY and step % SAVE_EVERY != 0 and step % STEPS_OF_EPOCH != 0

    process.freeze_when(beyond_a_checkpoint)
    workers = children(process.popen.pid)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < saved_step(run) < logged_step(run) < STEPS
    assert not (run / "model.safetensors").exists()
    code, _, error = run_cli("distill", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, reference)
    # a killed run leaves no process behind
    end = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [worker for worker in workers if is_running(worker)]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_told_to_stop_in_mid_epoch(
    tmp_path: Path,
    command: Callable[[object], list[str]],
    reference: Path,
    start: Callable[[list[str]], Process],
    run_cli: RunCli,
) -> None:
    run = tmp_path / "run"
    process = start(command(run))
    # as a terminal and a cluster do: the workers get it too
    process.freeze_when(lambda: logged_step(run) > STEPS_OF_EPOCH and saved_step(run) > 0)
    for pid in (*children(process.popen.pid), process.popen.pid):
        os.kill(pid, signal.SIGTERM)
    process.signal(signal.SIGCONT)
    assert process.wait() == 130
    step = saved_step(run)
    assert STEPS_OF_EPOCH < step < STEPS
    assert train_lines(run)[-1]["step"] == step
    assert process.output().splitlines()[-1] == (
        f"aicsd: stopped at step {step} of {STEPS}; continue with --resume"
    )
    assert "Traceback" not in process.output()
    assert not (run / "metrics.json").exists()
    code, _, error = run_cli("distill", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, reference)


# cut at a step that the test chooses


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send this process a signal while it writes a line of the log."""

    def prepare(step: int, key: str = "loss", number: int = signal.SIGTERM) -> None:
        write = RunLogger.scalars

        def write_and_signal(self: RunLogger, at: int, values: dict[str, Any]) -> None:
            write(self, at, values)
            if at == step and key in values:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(RunLogger, "scalars", write_and_signal)

    return prepare


@pytest.fixture(scope="module")
def small_reference(place: Path, root: Path) -> Path:
    run = place / "small_reference"
    aicsd(*small_command(root, run))
    return run


def small_command(root: Path, run: Path, *more: object) -> list[str]:
    """8 steps, 4 to an epoch; validated after both epochs."""
    return train_command(root, run, "--epochs", "2", "--optimizer.ema", "0.5", *more)


@pytest.mark.parametrize(
    ("step", "key", "number"),
    [(3, "loss", signal.SIGHUP), (4, "val/miou", signal.SIGTERM)],
    ids=["mid_epoch", "validation"],
)
def test_stopped_at(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
    step: int,
    key: str,
    number: int,
) -> None:
    run = tmp_path / "run"
    stop_at(step, key, number)
    code, _, error = run_cli(*small_command(root, run))
    assert (code, error.splitlines()[-1]) == (
        130, f"aicsd: stopped at step {step} of 8; continue with --resume",
    )  # fmt: skip
    assert saved_step(run) == step
    assert not (run / "model.safetensors").exists()
    monkeypatch.undo()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_stopped_at_every_step(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """Cut after each single step, the run still is the same."""
    run = tmp_path / "run"
    for step in range(1, 8):
        with pytest.MonkeyPatch.context() as patch:
            write = RunLogger.scalars

            def scalars(self: RunLogger, at: int, values: Any, wanted: int = step) -> None:
                write(self, at, values)  # noqa: B023
                if at == wanted and "loss" in values:
                    os.kill(os.getpid(), signal.SIGINT)

            patch.setattr(RunLogger, "scalars", scalars)
            resume = ["--resume"] if step > 1 else []
            code, _, error = run_cli(*small_command(root, run, *resume))
        assert code == 130, error
        assert saved_step(run) == step
    code, _, error = run_cli(*small_command(root, run, "--resume"))
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_stop_between_lines_of_the_log(
    root: Path, tmp_path: Path, stop_at: Callable[..., None], run_cli: RunCli
) -> None:
    """With rare lines, the step at which a validation was stopped still gets one."""
    run = tmp_path / "run"
    stop_at(4, "val/miou")
    code, _, _ = run_cli(*small_command(root, run, "--log_every", "3"))
    assert code == 130
    assert [line["step"] for line in train_lines(run)] == [3, 4]
    assert saved_step(run) == 4


def test_signals_are_left_as_they_were(
    root: Path, tmp_path: Path, stop_at: Callable[..., None], run_cli: RunCli
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    stop_at(2)
    assert run_cli(*small_command(root, tmp_path / "run"))[0] == 130
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_hang_up_that_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_before_the_first_step(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli, number: int
) -> None:
    def build(*_: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal comes first")

    monkeypatch.setattr("aicsd.engine.run.build_model", build)
    code, output, error = run_cli(*small_command(root, tmp_path / "run"))
    assert (code, output) == (130, "")
    assert error.splitlines()[-1] == "aicsd: stopped before the first step; nothing was written"
    assert not (tmp_path / "run").exists()


def test_stopped_while_the_report_is_written(
    small_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    (run / "report.html").unlink()
    monkeypatch.setattr(
        "aicsd.engine.run_report.write_report",
        lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM),
    )
    code, output, error = run_cli("train", "--run", run, "--resume")
    assert (code, output) == (130, "")
    assert error.splitlines()[-1] == "aicsd: stopped; the run is finished"
    monkeypatch.undo()
    assert run_cli("train", "--run", run, "--resume")[0] == 0
    assert (run / "report.html").is_file()


def test_training_goes_on_when_nothing_takes_its_lines(
    root: Path, small_reference: Path, tmp_path: Path
) -> None:
    """As with ``2>&1 | head -1``, and after a hang-up under nohup."""
    command = small_command(root, tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-m", "aicsd", *command], stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=120) == 0
    assert_like_reference(tmp_path / "run", small_reference)


def test_weights_that_are_not_finite_are_not_saved(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    """The checkpoint before stays, from which the run can go on."""
    import aicsd.engine.fit as loop

    run, step_of = tmp_path / "run", loop.train_step

    def diverge(training: Any, batches: Any, step: int, progress: float) -> Any:
        result = step_of(training, batches, step, progress)
        if step == 3:
            training.distiller.student.net.classifier.bias.data.fill_(float("nan"))
        return result

    monkeypatch.setattr("aicsd.engine.fit.train_step", diverge)
    code, output, error = run_cli(*small_command(root, run, "--save_every", "2"))
    assert (code, output) == (2, "")
    assert error.splitlines()[-1].startswith(
        "aicsd: error: the weights are no longer finite at step 4 (student.net.classifier.bias)"
    )
    assert saved_step(run) == 2


def test_killed_while_writing(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
) -> None:
    """A half-written checkpoint beside the whole one, lines beyond it, and half a line."""
    run = tmp_path / "run"
    stop_at(3)
    assert run_cli(*small_command(root, run))[0] == 130
    monkeypatch.undo()
    checkpoint = run / "checkpoints" / "last.pt"
    half = checkpoint.with_name(".last.pt.4321.tmp.pt")
    half.write_bytes(checkpoint.read_bytes()[:9000])
    (run / ".model.safetensors.4321.tmp.safetensors").write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 123.0}\n{"step": 5, "lo')
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_a_damaged_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
) -> None:
    run = tmp_path / "run"
    stop_at(5)
    assert run_cli(*small_command(root, run, "--save_every", "2"))[0] == 130
    monkeypatch.undo()
    checkpoint = run / "checkpoints" / "last.pt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 16
    checkpoint.write_bytes(content)
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    (told,) = [line for line in error.splitlines() if "damaged" in line]
    assert told.startswith(f"run: checkpoint {checkpoint} is damaged")
    assert told.endswith("going on from previous.pt, step 4")
    assert_like_reference(run, small_reference)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.pt"]


def test_best_model_so_far_is_remembered(
    root: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
) -> None:
    """After a resume, only a better model takes the place of the best one."""
    run = tmp_path / "run"
    stop_at(3)
    assert run_cli(*small_command(root, run))[0] == 130
    monkeypatch.undo()
    checkpoint = run / "checkpoints" / "last.pt"
    states = torch.load(checkpoint, weights_only=True)
    states["progress"]["best_miou"] = 0.99
    torch.save(states, checkpoint)
    (run / "best.safetensors").write_bytes(b"the best")
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert (run / "best.safetensors").read_bytes() == b"the best"


def test_the_scale_of_16_bit_gradients_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU there is none, so that one is made up."""
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(Precision, "state_dict", lambda _: {"scale": 1024.0})
    monkeypatch.setattr(Precision, "load_state_dict", lambda _, state: found.append(state))
    aicsd(*train_command(data, run, "--epochs", 1))
    assert found == []
    (run / "report.html").unlink()  # else the run is as it should be, and nothing is loaded
    aicsd(*train_command(data, run, "--epochs", 1, "--resume"))
    assert found == [{"scale": 1024.0}]


def test_killed_before_the_first_checkpoint(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """The folder has a config and the first lines of the log, and nothing else."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(small_reference / "config.yaml", run)
    text = (run / "config.yaml").read_text().replace(str(small_reference), str(run))
    (run / "config.yaml").write_text(text)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 123.0}\n')
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_killed_before_the_result_was_written(
    small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    for name in ("metrics.json", "model.safetensors"):
        (run / name).unlink()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert same_weights(run, small_reference)
    results = [json.loads((path / "metrics.json").read_text()) for path in (run, small_reference)]
    assert without(results[0], "seconds") == without(results[1], "seconds")
    assert [line["step"] for line in train_lines(run)] == list(range(1, 9))


# --resume in other situations


def test_finished_run_returns_at_once(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    before = dict(files_below(run))
    monkeypatch.setattr("aicsd.engine.run_batches.train_loader", None)
    monkeypatch.setattr("aicsd.engine.record.evaluate", None)
    code, output, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    miou = json.loads((run / "metrics.json").read_text())["miou"]
    assert f"val mIoU {miou:.4f}" in output
    after = dict(files_below(run))
    before.pop("config.yaml"), after.pop("config.yaml")
    assert after == before


@pytest.mark.parametrize("repeated", [False, True], ids=["bare", "settings_repeated"])
@pytest.mark.parametrize("command", ["train", "distill"])
def test_resume_of_what_is_no_run(
    root: Path, tmp_path: Path, run_cli: RunCli, command: str, repeated: bool
) -> None:
    """A misspelt name, or a folder with other things in it, starts nothing."""
    before = list(files_below(root))
    for folder in (tmp_path / "tpyo", root):
        flags = small_command(root, folder)[1:] if repeated else ["--run", str(folder)]
        if command == "distill":
            flags = [flag.replace("--model", "--student") for flag in flags]
        code, output, error = run_cli(command, *flags, "--resume")
        assert (code, output) == (2, "")
        assert error == (
            f"aicsd: error: resume: there is no run in {folder} (no config.yaml); name "
            "the folder of a run, or leave out --resume to start one\n"
        )
    assert not (tmp_path / "tpyo").exists()
    assert list(files_below(root)) == before


@pytest.mark.parametrize(
    "flags",
    [["--run={}", "--resume"], ["--resume", "--run", "{}"], ["--run", "{}", "--resume=true"],
     ["--run", "{}", "--resume", "true"]],
    ids=lambda flags: " ".join(flags),
)  # fmt: skip
def test_forms_of_resume(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, flags: list[str]
) -> None:
    """The run knows its settings; none has to be repeated."""
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    (run / "metrics.json").unlink()
    code, _, error = run_cli("train", *(flag.format(run) for flag in flags))
    assert code == 0, error
    assert same_weights(run, small_reference)
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors"),
        (lambda run: (run / "model.safetensors").write_bytes(b"broken"), "model.safetensors"),
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json is damaged"),
    ],
    ids=["model_missing", "model_broken", "result_broken"],
)
def test_a_damaged_result_is_made_again(
    small_reference: Path,
    tmp_path: Path,
    run_cli: RunCli,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    damage(run)
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert f"{words}" in error
    assert error.count("it is made again from the checkpoint") == 1
    assert same_weights(run, small_reference)
    results = [json.loads((path / "metrics.json").read_text()) for path in (run, small_reference)]
    assert without(results[0], "seconds") == without(results[1], "seconds")


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(
    small_reference: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_reference, run)
    shutil.rmtree(run / "checkpoints")
    engine = sys.modules["aicsd.engine.fit"]
    monkeypatch.setattr(engine, "train_step", None)
    assert run_cli("train", "--run", run, "--resume")[0] == 0
    (run / "report.html").unlink()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert (run / "report.html").is_file()
    assert same_weights(run, small_reference)
    code, _, error = run_cli("train", "--run", run, "--resume", "--epochs", "3")
    assert code == 2
    assert "has no checkpoint to go on from for 3 epochs" in error
    (run / "model.safetensors").write_bytes(b"broken")
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 2
    assert "no checkpoint is left to make it again from" in error


def test_a_finished_run_goes_on_for_more_epochs(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        shutil.copytree(small_reference, run)
    code, _, error = run_cli("train", "--run", whole, "--resume", "--epochs", "4")
    assert code == 0, error
    assert "whole: continues to 4 epochs: from here on the learning rate" in error
    assert [line["step"] for line in train_lines(whole)] == list(range(1, 17))
    # the learning rate of step 9 of 16, as the schedule of the whole run has it
    before, after = train_lines(whole)[7:9]
    assert before["lr"] < after["lr"] == pytest.approx(0.007 * 0.5**0.9)
    assert yaml.safe_load((whole / "config.yaml").read_text())["epochs"] == 4
    assert not same_weights(whole, small_reference)
    # cut and resumed it is the same, and needs no word about epochs any more
    stop_at(11)
    assert run_cli("train", "--run", cut, "--resume", "--epochs", "4")[0] == 130
    monkeypatch.undo()
    assert not (cut / "metrics.json").exists()
    code, _, error = run_cli("train", "--run", cut, "--resume")
    assert code == 0, error
    assert_like_reference(cut, whole)
    code, _, error = run_cli("train", "--run", cut, "--resume", "--epochs", "3")
    assert code == 2
    assert "epochs was 4 and now is 3" in error


def test_harmless_settings_may_change(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
) -> None:
    """Moved run, moved data, other workers, other bookkeeping."""
    stop_at(3)
    assert run_cli(*small_command(root, tmp_path / "run"))[0] == 130
    monkeypatch.undo()
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(root, tmp_path / "moved_data")
    code, _, error = run_cli(
        "train", "--run", tmp_path / "moved", "--resume", "--data.root", tmp_path / "moved_data",
        "--data.workers", "1", "--save_every", "2",
    )  # fmt: skip
    assert code == 0, error
    assert_like_reference(tmp_path / "moved", small_reference)


def test_resume_in_python(
    root: Path, small_reference: Path, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    import aicsd as package
    from aicsd.config import build_config
    from aicsd.engine.config import TrainConfig
    from aicsd.engine.stop import Interrupted

    settings = yaml.safe_load((small_reference / "config.yaml").read_text())
    settings |= {"run": str(tmp_path / "run")}
    assert build_config(TrainConfig, settings).epochs == 2
    stop_at(5)
    with pytest.raises(Interrupted, match="step 5 of 8"):
        package.train(**settings)
    run = package.train(**{**settings, "resume": True})
    assert_like_reference(run.path, small_reference)


# the same seed gives the same weights


def test_same_seed_same_weights(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    for seed in (0, 1):
        code, _, error = run_cli(*small_command(root, tmp_path / str(seed), "--seed", seed))
        assert code == 0, error
    assert_like_reference(tmp_path / "0", small_reference)
    assert not same_weights(tmp_path / "1", small_reference)


def test_workers_do_not_change_the_weights(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    code, _, error = run_cli(*small_command(root, run, "--data.workers", "2"))
    assert code == 0, error
    assert_like_reference(run, small_reference)


# two processes


def test_two_processes(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Each takes half of every batch; three validation images are counted once each."""
    run = tmp_path / "run"
    flags = ["--devices", "2", "--data.batch_size", "2", "--epochs", "2", "--val_every", "0"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                "--master-addr", "127.0.0.1", "--master-port", str(port)]  # fmt: skip
    command = [*launcher, "-m", "--", "aicsd", *train_command(root, run, *flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
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
