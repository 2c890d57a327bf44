"""Data with which something is wrong: exit code 2 and one line, before the first step."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, write_folder
from PIL import Image
from tiny_runs import files_below, train_lines
from user_errors import DATA, TRAIN, assert_one_line

BROKEN_DATA = {
    "mask_missing": ["no mask for data/images/train/002.png", "data/masks/train"],
    "mask_id": ["data/masks/train/002.png", "class id 7", "ids 0 to 2"],
    "mask_size": ["data/images/train/002.png is 64x48", "data/masks/train/002.png is 63x48"],
    "mask_rgb": ["data/masks/train/002.png is a RGB image", "one channel"],
    "mask_truncated": ["data/masks/train/002.png is not a readable image"],
    "image_empty": ["data/images/train/002.png is not a readable image"],
    "image_is_text": ["data/images/train/002.png is not a readable image"],
    "no_images": ["no images in data/images/train"],
    "no_masks_folder": ["no folder data/masks/train"],
    "no_classes": ["no data/classes.txt", "one class name a line"],
    "classes_empty": ["data/classes.txt names 0 classes"],
    "classes_repeated": ["data/classes.txt names 'disc' more than once"],
}


def break_data(root: Path, what: str) -> None:
    image, mask = root / "images" / "train" / "002.png", root / "masks" / "train" / "002.png"
    if what == "mask_missing":
        mask.unlink()
    elif what == "mask_id":
        ids = np.zeros((48, 64), np.uint8)
        ids[5, 5] = 7
        Image.fromarray(ids).save(mask)
    elif what == "mask_size":
        Image.fromarray(np.zeros((48, 63), np.uint8)).save(mask)
    elif what == "mask_rgb":
        Image.new("RGB", (64, 48)).save(mask)
    elif what == "mask_truncated":
        mask.write_bytes(mask.read_bytes()[:-40])
    elif what == "image_truncated":
        image.write_bytes(image.read_bytes()[:-2000])
    elif what == "image_empty":
        image.write_bytes(b"")
    elif what == "image_is_text":
        image.write_text("not an image")
    elif what == "no_images":
        for path in image.parent.iterdir():
            path.unlink()
    elif what == "no_masks_folder":
        shutil.rmtree(mask.parent)
    elif what == "no_classes":
        (root / "classes.txt").unlink()
    elif what == "classes_empty":
        (root / "classes.txt").write_text("\n")
    elif what == "classes_repeated":
        (root / "classes.txt").write_text("disc\nbar\ndisc\n")
    else:
        raise AssertionError(what)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with its own ``data`` for a test to break."""
    write_folder(tmp_path / "data", {"train": 4, "val": 2})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", BROKEN_DATA)
def test_broken_data(broken: Path, run_cli: RunCli, what: str) -> None:
    break_data(broken / "data", what)
    before = list(files_below(broken))
    assert_one_line(*run_cli(*shlex.split(TRAIN)), BROKEN_DATA[what])
    assert list(files_below(broken)) == before
    assert_one_line(*run_cli(*shlex.split(f"data check {DATA}")), BROKEN_DATA[what])


def test_broken_validation_data(broken: Path, run_cli: RunCli) -> None:
    """Found before the first step, not after the first epoch."""
    Image.new("RGB", (64, 48)).save(broken / "data" / "masks" / "val" / "001.png")
    assert_one_line(*run_cli(*shlex.split(TRAIN)), ["masks/val/001.png is a RGB image"])
    assert not (broken / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image_stops_training(broken: Path, run_cli: RunCli, workers: int) -> None:
    """Only decoding shows it; the run can go on when the image is mended."""
    image = broken / "data" / "images" / "train" / "002.png"
    whole = image.read_bytes()
    break_data(broken / "data", "image_truncated")
    command = shlex.split(f"{TRAIN} --data.workers {workers} --seed 2")
    assert_one_line(*run_cli(*command), ["data/images/train/002.png is not a readable image"])
    assert not list((broken / "out").rglob("student*.safetensors"))
    image.write_bytes(whole)
    code, _, error = run_cli(*command, "--resume")
    assert code == 0, error
    assert len(train_lines(broken / "out")) == 1


def test_data_check_lists_every_bad_file(broken: Path, run_cli: RunCli) -> None:
    root = broken / "data"
    break_data(root, "mask_id")
    image = root / "images" / "train" / "000.png"
    image.write_bytes(image.read_bytes()[:-2000])
    Image.new("RGB", (64, 48)).save(root / "masks" / "val" / "001.png")
    code, output, error = run_cli(*shlex.split(f"data check {DATA}"))
    assert code == 2
    found = error.splitlines()
    assert all(line.startswith("aicsd: error: ") for line in found)
    named = [
        next(name for name in ("train/000.png", "train/002.png", "val/001.png") if name in line)
        for line in found
    ]
    assert named == ["train/000.png", "train/002.png", "val/001.png"]
    assert "train: 4 images, 2 cannot be used" in output
    assert "val: 2 images, 1 cannot be used" in output
    code, output, error = run_cli(*shlex.split(f"data check {DATA} --data.split val"))
    assert (code, len(error.splitlines())) == (2, 1)
    assert "train" not in output


def test_camvid_without_annotations(broken: Path, run_cli: RunCli) -> None:
    (broken / "data" / "images" / "train").rename(broken / "data" / "train")
    command = shlex.split("data check --data.name camvid --data.root data")
    assert_one_line(*run_cli(*command), ["no folder data/trainannot", "{train,val,test}annot"])


def test_real_process(broken: Path) -> None:
    """``python -m aicsd``: the exit code and, with a truncated image, no word of OpenCV's."""
    break_data(broken / "data", "image_truncated")
    result = subprocess.run(
        [sys.executable, "-m", "aicsd", "data", "check", *shlex.split(DATA)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert_one_line(result.returncode, result.stdout, result.stderr, ["train/002.png"])
    assert "train: 4 images, 1 cannot be used" in result.stdout
