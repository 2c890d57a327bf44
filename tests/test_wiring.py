"""Settings reach the part of the training that they are for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, write_folder
from tiny_runs import NO_REPORT, train_command, train_lines


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("poly", lambda progress: (1 - progress) ** 0.9),
        ("cosine", lambda progress: (1 + math.cos(math.pi * progress)) / 2),
    ],
)
def test_the_schedule_sets_the_learning_rate(
    tmp_path: Path, run_cli: RunCli, schedule: str, factor: Callable[[float], float]
) -> None:
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    flags = ("--epochs", 2, "--optimizer.lr", 0.01, "--optimizer.schedule", schedule,
             "--optimizer.warmup", 0.5, *NO_REPORT)  # fmt: skip
    assert run_cli(*train_command(data, run, *flags))[0] == 0
    rates = [line["lr"] for line in train_lines(run)]
    warm = [min(1.0, (n + 1) / (len(rates) / 2)) for n in range(len(rates))]
    assert rates == pytest.approx([0.01 * w * factor(n / len(rates)) for n, w in enumerate(warm)])
    assert len(rates) > 2


@pytest.mark.parametrize("protocol", ["standard", "released"])
def test_the_protocol_reaches_padding_and_evaluation(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    loop, record = (
        importlib.import_module(f"aicsd.engine.{name}") for name in ("run_batches", "record")
    )
    data, run = write_folder(tmp_path / "data"), tmp_path / "run"
    paddings: list[list[int]] = []
    short_sides: list[int] = []

    def train_loader(*arguments: Any, **options: Any) -> Any:
        for batch in original_loader(*arguments, **options):
            outside = ~batch.valid
            paddings.append(batch.image.permute(0, 2, 3, 1)[outside].unique().tolist())
            yield batch

    def evaluate(*arguments: Any, **options: Any) -> Any:
        short_sides.append(options["short_side"])
        return original_evaluate(*arguments, **options)

    original_loader, original_evaluate = loop.train_loader, record.evaluate
    monkeypatch.setattr(loop, "train_loader", train_loader)
    monkeypatch.setattr(record, "evaluate", evaluate)
    command = train_command(data, run, "--epochs", 1, "--protocol", protocol, *NO_REPORT)
    command += ["--data.augment.blur", "0"]  # it mixes padding and image at the edge
    command += ["--model.backbone", "mobilenetv2_035"]  # another mean for each colour
    command[command.index("--data.augment.crop") + 1] = "160"  # larger than any image
    assert run_cli(*command)[0] == 0
    black = protocol == "released"
    assert paddings == [[0] if black else [104, 116, 124]] * 2
    assert set(short_sides) == {160 if black else 0}
