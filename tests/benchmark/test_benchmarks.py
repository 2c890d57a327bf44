"""The benchmarks behind docs/performance.md, at the smallest sizes: each gives its table."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from aicsd.models import ModelConfig

TINY = ModelConfig("test_resnet", aspp_channels=8, decoder_channels=8, low_level_channels=8)
SMALLEST: dict[str, dict[str, Any]] = {
    "step": {
        "TEACHER": "test_resnet", "STUDENT": "test_resnet", "BATCH": 2, "SIDE": 33, "CLASSES": 3,
        "RUNTIMES": ("eager",),
    },
    "losses": {"VOC": (2, 3, 33, 33), "ADE": (2, 5, 16, 16), "NATIVE": (2, 3, 9, 9)},
    "ics_share": {"CLASSES": (2,)},
    "growth": {
        "SERIES": {
            "classes": [(1, 2, 8), (1, 3, 8), (1, 4, 8)],
            "pixels": [(1, 2, 8), (1, 2, 9), (1, 2, 10)],
            "batch": [(1, 2, 8), (2, 2, 8), (3, 2, 8)],
        },
    },
    "data": {"COUNT": 8},
    "evaluation": {"CASES": (("tiny", TINY, (33, 49), 3),)},
    "teacher_cache": {"IMAGES": 8, "SIZE": (40, 48)},
}  # fmt: skip
"""Benchmark -> its constants, as small as they go."""


def once(candidates: Mapping[str, Callable[[], object]], repeats: int = 1) -> dict[str, float]:
    """One call of each in place of the fastest of several."""
    seconds = {}
    for name, run in candidates.items():
        begin = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - begin
    return seconds


def tiny_config(name: str) -> dict[str, Any]:
    keys = {"backbone": "test_resnet", "aspp_channels": 8, "decoder_channels": 8}
    if name == "teacher.yaml":
        return {"model": keys}
    return {"student": keys, "data": {"batch_size": 4, "augment": {"crop": 32}}}


@pytest.fixture(params=SMALLEST)
def benchmark(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    module = importlib.import_module(f"benchmarks.{request.param}")
    replaced = {
        **SMALLEST[request.param],
        "fastest": once,
        "read_config": tiny_config,
        "peak_in_maps": lambda *_: 2.0,
        "PICTURE": tmp_path / "growth.png",
    }
    if request.param == "ics_share":
        replaced["CASES"] = (module.Case(TINY, 2, 33),)
    for name, value in replaced.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def test_a_benchmark_gives_the_table_of_the_page(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    def report(
        name: str, figures: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        reports.append((name, figures, header, rows))

    monkeypatch.setattr(benchmark, "report", report)
    benchmark.main()
    ((name, figures, header, rows),) = reports
    assert f"benchmarks.{name}" == benchmark.__name__
    assert figures
    assert rows
    assert all(len(row) == len(header) for row in rows)
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"<!-- table: benchmarks.{name} -->\n\n| {' | '.join(header)} |" in page
