"""Losses that are not finite: named, kept, repeated, skipped, and gone on from."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, write_folder
from lightning_fabric import Fabric
from tiny_runs import NO_REPORT, aicsd, distill_command, lines, same_weights, train_command
from torch import nn

from aicsd import distill
from aicsd.engine.finite import LARGEST_ROW, FiniteCheck, NonFiniteLossError
from aicsd.errors import UserError
from aicsd.losses.cross_entropy import CrossEntropyLoss

DIVERGING = ("--optimizer.lr", "1e6", "--epochs", "6", "--val_every", "0", *NO_REPORT)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("nonfinite") / "data")


@pytest.fixture
def bad_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the cross entropy of some forward passes NaN."""

    def make(*numbers: int) -> None:
        forward, calls = CrossEntropyLoss.forward, 0

        @functools.wraps(forward)
        def replaced(self: Any, *arguments: Any, **named: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            value: torch.Tensor = forward(self, *arguments, **named)
            return value * float("nan") if calls in numbers else value

        monkeypatch.setattr(CrossEntropyLoss, "forward", replaced)

    return make


def step_named(error: str) -> int:
    found = re.search(r"no longer finite at step (\d+) of", error)
    assert found, error
    return int(found[1])


def test_the_step_the_term_and_the_images_are_named(
    root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """Whatever the interval of the log, the step is the one in which it begins."""
    named = []
    for log_every in ("1", "5"):
        run = tmp_path / log_every
        command = train_command(root, run, *DIVERGING, "--log_every", log_every)
        code, output, error = run_cli(*command)
        assert (code, output, error.count("\n")) == (2, "", 1), error
        named.append(step_named(error))
        assert "cross_entropy = " in error
        images = re.search(r"images ([\d, ]+)\)", error)
        assert images, error
        assert set(images[1].split(", ")) <= {f"{number:03}" for number in range(8)}
        assert f"aicsd debug replay {run / 'nonfinite.pt'}" in error
    assert named[0] == named[1]
    assert [line["step"] for line in lines(tmp_path / "1")] == list(range(1, named[0]))

    code, output, error = run_cli("debug", "replay", tmp_path / "5" / "nonfinite.pt")
    assert (code, error) == (0, "")
    assert f"step {named[0]}," in output
    assert re.search(r"cross_entropy +(nan|inf) +weight 1", output)
    assert "weights are not finite" in output or "output is not finite" in output


def test_a_replay_repeats_the_values(
    root: Path,
    tmp_path: Path,
    bad_step: Callable[..., None],
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a teacher, accumulation and dropout; the values of an undisturbed run's log."""
    aicsd(*train_command(root, tmp_path / "teacher", "--epochs", "1", *NO_REPORT))
    common = ("--epochs", "2", "--method", "kd", "--optimizer.accumulate", "2",
              "--student.dropout", "0.5", *NO_REPORT)  # fmt: skip
    aicsd(*distill_command(root, tmp_path / "teacher", tmp_path / "whole", *common))
    wanted = next(line for line in lines(tmp_path / "whole") if line["step"] == 2)
    # of the check of the teacher one pass, and of each step two: the second part of step 2
    bad_step(1 + 4)
    run = tmp_path / "run"
    code, _, error = run_cli(*distill_command(root, tmp_path / "teacher", run, *common))
    assert code == 2
    assert step_named(error) == 2
    monkeypatch.undo()  # the loss is whole again, so that the replay gives its true value
    code, output, error = run_cli("debug", "replay", run / "nonfinite.pt")
    assert (code, error) == (0, "")
    assert output.count("images: ") == 2
    values = [float(v) for v in re.findall(r"pixel_kd +([\d.e-]+)", output)]
    assert len(values) == 2
    assert values[1] == pytest.approx(wanted["loss/pixel_kd"], rel=0.2)
    assert "weight " in output


def test_a_stopped_run_goes_on_with_a_lower_rate(
    root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    assert run_cli(*train_command(root, run, *DIVERGING))[0] == 2
    assert (run / "nonfinite.pt").is_file()
    code, _, error = run_cli("train", "--run", run, "--resume", "--seed", "3")
    assert code == 2
    assert "seed was 0" in error
    more = ("--optimizer.lr", "1e-4", "--optimizer.clip", "1")
    code, _, error = run_cli("train", "--run", run, "--resume", *more)
    assert code == 0, error
    assert not (run / "nonfinite.pt").exists()
    code, _, error = run_cli("train", "--run", run, "--resume", "--optimizer.lr", "1")
    assert code == 2
    assert "optimizer.lr was 0.0001" in error


def test_steps_are_skipped_and_counted(
    root: Path, tmp_path: Path, bad_step: Callable[..., None], run_cli: RunCli
) -> None:
    bad_step(3, 4)
    run = tmp_path / "run"
    flags = ("--epochs", "4", "--optimizer.skip_nonfinite", "--val_every", "0", *NO_REPORT)
    code, _, error = run_cli(*train_command(root, run, *flags))
    assert code == 0, error
    counts = [line["skipped"] for line in lines(run) if "skipped" in line]
    assert counts == [0, 0, 1, 2, 2, 2, 2, 2]
    text = (run / "metrics.jsonl").read_text() + (run / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads((run / "metrics.json").read_text())["skipped_steps"] == 2


def test_a_skipped_step_leaves_no_trace(
    root: Path, tmp_path: Path, bad_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs whose last step is skipped, and runs that end before it, have the same weights."""
    from aicsd.engine.step import train_step

    flags = ("--epochs", "2", "--optimizer.skip_nonfinite", "--val_every", "0",
             "--optimizer.ema", "0.5", *NO_REPORT)  # fmt: skip
    bad_step(4)
    aicsd(*train_command(root, tmp_path / "skipped", *flags))
    monkeypatch.undo()
    last: Any = None

    def remember(training: Any, batches: Any, step: int, progress: float) -> Any:
        nonlocal last
        if step < 3:
            last = train_step(training, batches, step, progress)
        return last

    monkeypatch.setattr("aicsd.engine.fit.train_step", remember)
    aicsd(*train_command(root, tmp_path / "shorter", *flags))
    assert same_weights(tmp_path / "skipped", tmp_path / "shorter")


def test_a_broken_teacher_is_blamed_itself(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 4, stride=4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.conv(image)
            return logits * float("nan") if len(image) > 1 else logits

    with pytest.raises(UserError, match=r"step 1 of .*the teacher's output is not finite"):
        distill(
            Broken(),
            {"backbone": "test_resnet", "aspp_channels": 8, "decoder_channels": 8},
            {
                "name": "folder",
                "root": str(root),
                "batch_size": 4,
                "workers": 0,
                "augment": {"crop": 32},
            },
            method="kd",
            run=tmp_path / "run",
            epochs=1,
            logger="none",
            accelerator="cpu",
        )


class OnDevice(FiniteCheck):
    """As on a GPU: nothing is read before the log is written."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, Fabric(accelerator="cpu", devices=1), skip=False)
        self.at_once = False


def test_on_a_device_the_first_step_is_kept_until_it_is_looked_at() -> None:
    check = OnDevice(torch.nn.Linear(1, 1))
    for step, value in enumerate((1.0, 2.0, float("inf"), float("nan"), 1.0)):
        check.begin()
        assert check.allows_backward({"loss": torch.tensor(value), "a": torch.tensor(0.5)}, step)
        assert check.allows_update(step)
        if step == 1:
            check.require()
    with pytest.raises(NonFiniteLossError) as found:
        check.require()
    assert (found.value.step, found.value.rank) == (2, 0)


def test_gradients_that_are_not_finite_are_skipped_but_not_for_ever() -> None:
    model = torch.nn.Linear(2, 1)
    check = FiniteCheck(model, Fabric(accelerator="cpu", devices=1), skip=True)

    def take(step: int, gradient: float) -> bool:
        check.begin()
        assert check.allows_backward({"loss": torch.tensor(1.0)}, step)
        model.weight.grad = torch.full_like(model.weight, gradient)
        return check.allows_update(step)

    assert [take(step, g) for step, g in enumerate((1.0, float("inf"), 1.0))] == [True, False, True]
    assert check.skipped == 1
    assert not any(take(step, float("nan")) for step in range(LARGEST_ROW))
    with pytest.raises(UserError, match=f"{LARGEST_ROW + 1} steps in a row"):
        take(LARGEST_ROW, float("nan"))


def test_a_file_that_is_none(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "nonfinite.pt").write_bytes(b"nothing")
    code, _, error = run_cli("debug", "replay", tmp_path / "nonfinite.pt")
    assert code == 2
    assert error.count("\n") == 1
    assert "holds no step of a run" in error
