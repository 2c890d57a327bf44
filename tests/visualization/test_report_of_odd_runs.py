"""Reports of runs that skipped steps, or whose teacher has other names of classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from conftest import RunCli

from aicsd.data import Classes, open_dataset
from aicsd.models import load_model, save_model
from aicsd.runs import RunFolder
from aicsd.visualization.runs import open_networks


def copy_run(source: Path, path: Path, **keys: object) -> Path:
    shutil.copytree(source, path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**config, **keys}))
    return path


def test_a_term_without_a_value_in_a_skipped_step(
    runs: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run, out = copy_run(runs / "teacher", tmp_path / "run"), tmp_path / "report.html"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)
    first |= {"loss": None, "loss/cross_entropy": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, error = run_cli("report", run, "-o", out, "--images", "1")
    assert code == 0, error
    assert "what each term adds to the loss" in out.read_text(encoding="utf-8")


def test_the_teacher_of_one_run_has_the_map_of_its_classes(runs: Path, tmp_path: Path) -> None:
    """The run before it was trained alone, and has none."""
    teacher = load_model(runs / "teacher")
    names = tuple(f"other {name}" for name in teacher.classes.names)
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    pairs = dict(zip(names, classes.names, strict=True))
    teacher.classes = Classes(names, teacher.classes.palette)
    save_model(teacher, tmp_path / "t.safetensors")
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(pairs))
    alone = copy_run(runs / "alone", tmp_path / "a", teacher=None)
    distilled = copy_run(
        runs / "distilled", tmp_path / "d", teacher=str(tmp_path / "t.safetensors"),
        teacher_classes=str(tmp_path / "map.yaml"),
    )  # fmt: skip
    read = [RunFolder(path).read() for path in (alone, distilled)]
    networks, notes = open_networks(read, None, classes)
    assert not notes
    assert networks[0].model is not None
