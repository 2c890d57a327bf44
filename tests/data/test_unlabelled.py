"""Images without labels: the split ``unlabelled``, alone and joined to a labelled one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder
from tiny_runs import distill_command, same_weights, train_command, train_lines

from aicsd.data import open_dataset, open_images, survey
from aicsd.errors import UserError

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def partly_labelled(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2, "unlabelled": 6})
    shutil.rmtree(root / "masks" / "unlabelled")
    return root


def test_an_unlabelled_image_has_its_pixels_and_no_label(partly_labelled: Path) -> None:
    unlabelled = open_dataset("folder", str(partly_labelled), "unlabelled")
    assert len(unlabelled) == 6
    image, mask = unlabelled.read(2)
    assert image.std() > 0
    assert mask.shape == image.shape[:2]
    assert np.unique(mask).tolist() == [255]


def test_plus_joins_splits_in_order(partly_labelled: Path) -> None:
    root = str(partly_labelled)
    joined = open_dataset("folder", root, "train+unlabelled")
    assert joined.names[0] == "train/000"
    assert joined.names[-1] == "unlabelled/005"
    assert len(set(joined.names)) == len(joined) == 10
    alone = open_dataset("folder", root, "train")
    assert all(np.array_equal(joined.read(n).mask, alone.read(n).mask) for n in range(4))
    assert [np.unique(joined.read(n).mask).tolist() for n in (4, 9)] == [[255], [255]]
    assert len(open_images("folder", root, "train+unlabelled")) == 10
    with pytest.raises(UserError, match=r"no folder .*other"):
        open_dataset("folder", root, "train+other")


def test_check_reads_unlabelled_images(partly_labelled: Path) -> None:
    (partly_labelled / "images" / "unlabelled" / "003.png").write_bytes(b"no image")
    images, problems, _ = survey("folder", str(partly_labelled), "train+unlabelled")
    assert images == 10
    assert len(problems) == 1
    assert "003.png" in problems[0]


def test_a_student_learns_from_the_teacher_alone(
    partly_labelled: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    teacher = tmp_path / "teacher"
    assert run_cli(*train_command(partly_labelled, teacher, "--epochs", 1))[0] == 0
    flags = ("--method", "kd", "--data.train_split", "unlabelled", "--epochs", 12,
             "--optimizer.lr", 0.01)  # fmt: skip
    for run, weight in (("labels", 1), ("teacher_only", 0)):
        command = distill_command(partly_labelled, teacher, tmp_path / run, *flags)
        code, _, error = run_cli(*command, "--terms.cross_entropy.weight", weight)
        assert code == 0, error
    lines = train_lines(tmp_path / "labels")
    assert all(line["loss/cross_entropy"] == 0 for line in lines)
    assert lines[-1]["loss/pixel_kd"] < 0.7 * lines[0]["loss/pixel_kd"]
    assert same_weights(tmp_path / "labels", tmp_path / "teacher_only")
