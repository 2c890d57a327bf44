"""A validation split without labels: trained and compared, and no figure is made up."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import RunCli, write_folder
from tiny_models import save_tiny_model
from tiny_runs import distill_command


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training images with masks, and images without any in the split ``unlabelled``."""
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    (root / "images" / "val").rename(root / "images" / "unlabelled")
    shutil.rmtree(root / "masks" / "val")
    return root


def test_it_is_told_as_a_dash(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    runs = [tmp_path / name for name in ("none", "kd")]
    for run in runs:
        command = distill_command(root, teacher, run, "--data.val_split", "unlabelled", "--method",
                                  run.name, "--epochs", "1", "--logger", "none",
                                  "--report_images", "1")  # fmt: skip
        code, output, error = run_cli(*command)
        assert code == 0, error
        assert output.startswith(f"{run}: val mIoU -, 0.")
        assert "val mIoU - (no pixel with a label)" in error
        assert "nan" not in error
        assert "no report" not in error, error
        assert json.loads((run / "metrics.json").read_text())["miou"] is None
    # nothing can be the best
    assert not (runs[0] / "best.safetensors").exists()
    assert run_cli("distill", "--run", runs[0], "--resume")[0] == 0
    for arguments in (
        ("benchmark", "table", *runs),
        ("benchmark", "table", *runs, "--format", "json", "--per_class", "true"),
        ("report", *runs, "-o", tmp_path / "report.html"),
        ("visualize", runs[1], "--out", tmp_path / "pictures", "--images", "1"),
        ("evaluate", runs[0], "--data.name", "folder", "--data.root", root, "--data.split",
         "unlabelled"),
    ):  # fmt: skip
        code, output, error = run_cli(*arguments)
        assert code == 0, error
        assert "nan" not in output
    code, output, error = run_cli("benchmark", "table", *runs, "--format", "csv")
    assert code == 0, error
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["method"] for row in rows] == ["none", "kd"]
    assert {row["miou_mean"] for row in rows} == {""}


def test_labels_alone_and_no_labels_is_refused(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Else the loss is 0 from the first step to the last, without a word."""
    command = distill_command(root, "nothing", tmp_path / "run", "--data.train_split", "unlabelled",
                              "--data.val_split", "train", "--method", "none")  # fmt: skip
    code, output, error = run_cli(*command)
    assert (code, output) == (2, "")
    assert "no image of the split 'unlabelled' has labels, and method 'none' learns" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
