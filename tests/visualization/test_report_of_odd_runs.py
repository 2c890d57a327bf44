"""Reports of runs that skipped steps, or whose teacher has other names of classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import yaml
from conftest import RunCli

from aicsd.data import Classes, open_dataset
from aicsd.models import load_model, save_model
from aicsd.runs import RunFolder
from aicsd.visualization.entries import each_alone
from aicsd.visualization.runs import open_networks
from aicsd.visualization.verdict import verdict


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
    result = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**result, "labels": "teacher"}))
    code, _, error = run_cli("report", run, "-o", out, "--images", "1")
    assert code == 0, error
    assert "what each term adds to the loss" in out.read_text(encoding="utf-8")
    assert "mIoU is the agreement with the teacher." in out.read_text(encoding="utf-8")


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
        runs / "distilled",
        tmp_path / "d",
        teacher=str(tmp_path / "t.safetensors"),
        teacher_classes=str(tmp_path / "map.yaml"),
    )
    read = [RunFolder(path).read() for path in (alone, distilled)]
    networks, notes = open_networks(read, None, classes)
    assert not notes
    assert networks[0].model is not None


def test_a_teacher_has_the_score_of_its_own_runs(runs: Path, tmp_path: Path) -> None:
    other = load_model(runs / "teacher")
    with torch.no_grad():
        other.net.get_parameter("classifier.bias").add_(1.0)
    save_model(other, tmp_path / "o.safetensors")
    alien = copy_run(runs / "distilled", tmp_path / "d", teacher=str(tmp_path / "o.safetensors"))
    for name, key, value in (("metrics", "teacher", {"miou": 0.99}), ("inputs", "teacher", "0")):
        path = alien / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    read = [RunFolder(path).read() for path in (runs / "distilled", alien)]
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    networks, notes = open_networks(read, None, classes)
    assert networks[0].metrics == read[0].result["teacher"]
    assert [net.of_other_teacher for net in networks] == [False, False, True]
    (note,) = notes
    assert "was distilled from another teacher" in note
    sentences = verdict(each_alone(networks))
    assert ["against the teacher" in text for text in sentences] == [True, False]
    networks, _ = open_networks(read[:1], str(tmp_path / "o.safetensors"), classes)
    assert networks[0].metrics == {}  # not those of the teacher that the run had
    # a run beside students alone has its own score, if it is of the same images
    alone, teacher = RunFolder(runs / "alone").read(), RunFolder(runs / "teacher").read()
    assert open_networks([alone], str(runs / "teacher"), classes)[0][0].metrics == teacher.result
    elsewhere = copy_run(
        runs / "teacher", tmp_path / "t", data={**teacher.config["data"], "val_split": "train"}
    )
    networks, notes = open_networks([alone], str(elsewhere), classes)
    assert networks[0].metrics == {}
    assert "The teacher was not measured on the images of the runs" in notes[0]
