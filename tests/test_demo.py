"""The demo and the scripts behind the documented results, shortened."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from started import Started

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_demo_makes_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    out = tmp_path / "out"
    words = ["--out", str(out), "--epochs", "1", "--scenes", "16"]
    with Started(words, tmp_path / "log", script=SCRIPTS / "demo.py") as demo:
        assert demo.wait(300) == 0, demo.error
        for name in ("teacher", "student alone", "student AICSD", "mIoU", "class accuracy"):
            assert name in demo.output
    for run in ("teacher", "alone", "aicsd"):
        assert json.loads((out / run / "metrics.json").read_text())["images"] == 16
    with Image.open(out / "demo.png") as picture:
        assert picture.width > picture.height > 300


def test_the_camvid_page_shows_the_kept_metrics() -> None:
    from aicsd.benchmark.statistics import percent

    folder = SCRIPTS.parent / "docs" / "results"
    page = (folder / "camvid-short.md").read_text(encoding="utf-8")
    groups: dict[str, list[dict[str, float]]] = {}
    for path in sorted((folder / "camvid-short").glob("*.json")):
        name = re.sub(r"-\d$", "", path.stem)  # a seed; trials of other weights end otherwise
        groups.setdefault(name, []).append(json.loads(path.read_text()))
    assert len(groups) > 30
    for name, runs in groups.items():
        shown = percent([run["miou"] for run in runs])
        assert f"| {shown} |" in page, name
        if name.endswith(("none", "kd", "aicsd", "teacher")):
            accuracy = percent([run["class_accuracy"] for run in runs])
            assert re.search(rf"\| {re.escape(shown)} \|.* {re.escape(accuracy)} \|", page), name
