"""A run that was cut at a chosen step and resumed ends bit for bit as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, write_folder
from lightning_fabric.plugins.precision import Precision
from resumed import assert_like_reference, saved_step, small_command, without
from tiny_runs import aicsd, same_weights, stopping_at, train_command, train_lines

from aicsd.engine.step import train_step
from aicsd.engine.stop import stop_signal


@pytest.fixture(scope="module")
def root(small_reference: Path) -> Path:
    return small_reference.parent / "data"


@pytest.mark.parametrize(
    ("step", "key", "number"),
    [(3, "loss", signal.SIGHUP), (4, "val/miou", signal.SIGTERM)],
    ids=["mid_epoch", "validation"],
)
def test_stopped_at(
    root: Path,
    small_reference: Path,
    tmp_path: Path,
    run_cli: RunCli,
    step: int,
    key: str,
    number: int,
) -> None:
    run = tmp_path / "run"
    with stopping_at(step, key, number):
        code, _, error = run_cli(*small_command(root, run))
    assert (code, error.splitlines()[-1]) == (
        130,
        f"aicsd: stopped at step {step} of 8; continue with --resume",
    )
    assert saved_step(run) == step
    assert not (run / "model.safetensors").exists()
    code, _, error = run_cli("train", "--run", run, "--resume")
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_stopped_at_every_step_of_an_epoch(
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """Cut after each single step, and after the first of the next epoch, the run is the same."""
    run = tmp_path / "run"
    for step in range(1, 6):
        resume = ["--resume"] if step > 1 else []
        with stopping_at(step, number=signal.SIGINT):
            code, _, error = run_cli(*small_command(root, run, *resume))
        assert code == 130, error
        assert saved_step(run) == step
    code, _, error = run_cli(*small_command(root, run, "--resume"))
    assert code == 0, error
    assert_like_reference(run, small_reference)


def test_stop_between_lines_of_the_log(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """The step at which a validation was stopped gets a line even where lines are rare."""
    run = tmp_path / "run"
    with stopping_at(4, "val/miou"):
        code, _, _ = run_cli(*small_command(root, run, "--log_every", "3"))
    assert code == 130
    assert [line["step"] for line in train_lines(run)] == [3, 4]
    assert saved_step(run) == 4


def test_signals_are_left_as_they_were(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stopping_at(2):
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


def test_weights_that_are_not_finite_are_not_saved(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    """The checkpoint before stays, from which the run can go on."""
    run = tmp_path / "run"

    def diverge(training: Any, batches: Any, step: int, progress: float) -> Any:
        result = train_step(training, batches, step, progress)
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
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """A half-written checkpoint beside the whole one, lines beyond it, and half a line."""
    run = tmp_path / "run"
    with stopping_at(3):
        assert run_cli(*small_command(root, run))[0] == 130
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
    root: Path, small_reference: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    with stopping_at(5):
        assert run_cli(*small_command(root, run, "--save_every", "2"))[0] == 130
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


def test_best_model_so_far_is_remembered(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """After a resume, only a better model takes the place of the best one."""
    run = tmp_path / "run"
    with stopping_at(3):
        assert run_cli(*small_command(root, run))[0] == 130
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
    """The CPU has none, so that one is made up."""
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
