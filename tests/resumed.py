"""Small trainings that the tests of ``--resume`` cut, and what must come out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_runs import NO_REPORT, lines, same_weights, train_command, weights

SPEED = ("images_per_second", "data_wait")
"""Figures that depend on the clock."""


def small_command(root: Path, run: Path, *more: object) -> list[str]:
    """8 steps, 4 to an epoch; validated after both epochs; without a report."""
    flags = ("--epochs", "2", "--optimizer.ema", "0.5", *NO_REPORT)
    return train_command(root, run, *flags, *more)


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
