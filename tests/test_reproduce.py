"""aicsd reproduce: the same run again, and where another one first differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import RunCli
from safetensors.torch import load_file
from tiny_runs import aicsd, lines, train_command

from aicsd.engine.reproduce import differences
from aicsd.models import load_model, save_model
from aicsd.runs import RunFolder
from aicsd.teacher import cache


def test_a_distillation_comes_out_the_same(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "again"
    code, output, error = run_cli("reproduce", runs / "distilled", "--out", out)
    assert code == 0, error
    assert output == f"{runs / 'distilled'}: the repetition is identical, weights and figures\n"
    assert (out / "model.safetensors").is_file()


def test_where_another_run_first_differs(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "teacher", run)
    log = lines(run)
    wrong = next(line for line in log if line["step"] == 2 and "loss" in line)
    wrong["loss"] += 1e-6
    wrong["images_per_second"] += 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    code, output, error = run_cli("reproduce", run)
    assert code == 1, error
    (_, told) = output.splitlines()
    assert told.startswith("  metrics.jsonl: first at step 2, where loss was ")


def test_what_is_compared(runs: Path, tmp_path: Path) -> None:
    first = RunFolder(runs / "teacher")
    assert not list(differences(first, first))
    aicsd(*train_command(runs / "data", tmp_path / "b", "--epochs", "1", "--seed", "1"))
    found = list(differences(first, RunFolder(tmp_path / "b")))
    assert [line.partition(":")[0] for line in found][:1] == ["metrics.jsonl"]
    assert any(line.startswith("weights of model: ") for line in found)

    changed = tmp_path / "changed"
    shutil.copytree(first.path, changed)
    model = load_model(changed)
    with torch.no_grad():
        model.net.get_parameter("classifier.bias")[1] += 0.25
    save_model(model, changed / "model.safetensors")
    count = len(load_file(changed / "model.safetensors"))
    assert list(differences(first, RunFolder(changed))) == [
        f"weights of model: 1 of {count} tensors, first classifier.bias, by 0.25 at most"
    ]


def test_digests_of_earlier_versions_are_of_the_same_teacher(runs: Path, tmp_path: Path) -> None:
    first, old = RunFolder(runs / "distilled"), RunFolder(tmp_path / "old")
    shutil.copytree(first.path, old.path)
    inputs = json.loads(old.inputs.read_text())
    teacher = load_model(first.read_config()["teacher"])

    def differences_with(digest: str) -> list[str]:
        old.inputs.write_text(json.dumps(inputs | {"teacher": digest}))
        return list(differences(old, first))

    earliest = cache._fingerprint(teacher, ("least", "bicubic", "resizing"))
    assert earliest != inputs["teacher"]
    assert not differences_with(earliest)
    assert differences_with("0" * 64) == ["inputs: another teacher"]


@pytest.mark.parametrize("what", ["no run", "not finished", "processes"])
def test_refused(runs: Path, tmp_path: Path, run_cli: RunCli, what: str) -> None:
    run = tmp_path / "run"
    words = "is not a run folder"
    if what != "no run":
        shutil.copytree(runs / "teacher", run)
    if what == "not finished":
        (run / "metrics.json").unlink()
        words = "not a finished run"
    if what == "processes":
        text = (run / "config.yaml").read_text().replace("devices: 1", "devices: 2")
        (run / "config.yaml").write_text(text)
        words = "give --out"
    code, output, error = run_cli("reproduce", run)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert words in error
