"""Cityscapes: its two layouts, the 19 classes, and every error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, one_line
from PIL import Image

from aicsd.data import open_dataset, open_images
from aicsd.data.cityscapes import CLASSES, LABEL_IDS

NAMES = ["bochum/bochum_000000_000313", "ulm/ulm_000000_000019", "ulm/ulm_000001_000019"]
ALL_IDS = np.arange(36, dtype=np.uint8).reshape(4, 9)
# written by hand from the table of the benchmark: label id -> train id
TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}


@pytest.fixture(params=["leftImg8bit", "images"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        for name in NAMES:
            image = tmp_path / request.param / split / f"{name}_leftImg8bit.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(image)
            mask = mask_file(tmp_path, split, name)
            mask.parent.mkdir(parents=True, exist_ok=True)
            # those of the test split hold nothing, and are in the archive all the same
            Image.fromarray(ALL_IDS * (split != "test")).save(mask)
            mask.with_name(mask.name.replace("labelIds", "instanceIds")).write_bytes(b"")
            mask.with_name(mask.name.replace("labelIds", "labelTrainIds")).write_bytes(b"")
    return tmp_path


def mask_file(root: Path, split: str, name: str) -> Path:
    return root / "gtFine" / split / f"{name}_gtFine_labelIds.png"


def image_file(root: Path, split: str, name: str) -> Path:
    top = next(root / top for top in ("leftImg8bit", "images") if (root / top).is_dir())
    return top / split / f"{name}_leftImg8bit.png"


@pytest.mark.parametrize("split", ["train", "val"])
def test_label_ids_become_train_ids(root: Path, split: str) -> None:
    dataset = open_dataset("cityscapes", str(root), split)
    assert dataset.names == [f"{Path(name).name}_leftImg8bit" for name in NAMES]
    expected = np.array([TRAIN_IDS.get(label, 255) for label in range(36)]).reshape(4, 9)
    for index in range(3):
        assert np.array_equal(dataset.read(index).mask, expected)


def test_license_plates_and_unknown_ids_are_ignored(root: Path) -> None:
    path = mask_file(root, "val", NAMES[0])
    Image.fromarray(np.array([[255] * 9, [200] * 9, [7] * 9, [0] * 9], np.uint8)).save(path)
    mask = open_dataset("cityscapes", str(root), "val").read(0).mask
    assert mask[:, 0].tolist() == [255, 255, 0, 255]


def test_the_label_ids_lead_back() -> None:
    assert list(LABEL_IDS) == [label for label, _ in sorted(TRAIN_IDS.items(), key=lambda i: i[1])]
    assert len(CLASSES.names) == len(set(CLASSES.palette)) == 19
    by_name = dict(zip(CLASSES.names, zip(LABEL_IDS, CLASSES.palette, strict=True), strict=True))
    assert by_name["road"] == (7, (128, 64, 128))
    assert by_name["traffic light"] == (19, (250, 170, 30))
    assert by_name["rider"] == (25, (255, 0, 0))
    assert by_name["train"] == (31, (0, 80, 100))
    assert by_name["bicycle"] == (33, (119, 11, 32))


def test_agrees_with_the_scripts_of_the_owners() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    found = [
        (label.name, label.id, label.color)
        for label in sorted(labels.labels, key=lambda label: label.trainId)
        if 0 <= label.trainId < 255
    ]
    assert found == list(zip(CLASSES.names, LABEL_IDS, CLASSES.palette, strict=True))


def test_images_of_every_split(root: Path) -> None:
    for split in ("train", "val", "test"):
        paths = open_images("cityscapes", str(root), split)
        assert paths == [image_file(root, split, name) for name in NAMES]


def test_the_test_split_has_images_only(root: Path, run_cli: RunCli) -> None:
    assert "not public" in one_line(lambda: open_dataset("cityscapes", str(root), "test"))
    flags = ("--data.name", "cityscapes", "--data.root", root, "--data.split", "test")
    code, output, error = run_cli("data", "check", *flags)
    assert (code, error) == (0, "")
    assert "test: 3 images, 0 cannot be used" in output
    image_file(root, "test", NAMES[1]).write_bytes(b"")
    code, _, error = run_cli("data", "check", *flags)
    assert (code, error.count("\n")) == (2, 1)
    assert "ulm_000000_000019_leftImg8bit.png is not a readable image" in error


def test_check_names_both_kinds_of_broken_pair(root: Path, run_cli: RunCli) -> None:
    mask_file(root, "train", NAMES[0]).unlink()
    image_file(root, "train", NAMES[1]).unlink()
    cut = mask_file(root, "train", NAMES[2])
    cut.write_bytes(cut.read_bytes()[:-30])
    flags = ("--data.name", "cityscapes", "--data.root", root)
    code, output, error = run_cli("data", "check", *flags)
    assert code == 2
    lines = error.splitlines()
    assert len(lines) == 3
    assert f"no file at {mask_file(root, 'train', NAMES[0])}" in lines[0]
    assert f"no image at {image_file(root, 'train', NAMES[1])}" in lines[1]
    assert f"{cut} is not a readable image" in lines[2]
    assert "train: 3 images, 3 cannot be used" in output
    assert "val: 3 images, 0 cannot be used" in output
    assert "val: note: 3 images; the official split has 500" in output
    message = one_line(lambda: open_dataset("cityscapes", str(root), "train"))
    assert f"no file {mask_file(root, 'train', NAMES[0])} and 1 more files" in message


def test_two_images_of_one_name_are_refused(root: Path) -> None:
    twin = image_file(root, "val", NAMES[1])
    other = twin.parents[1] / "bochum" / twin.name
    other.write_bytes(twin.read_bytes())
    message = one_line(lambda: open_images("cityscapes", str(root), "val"))
    assert f"{other} and {twin} have the same name" in message


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no_images", "no folder"),
        ("no_masks", "no folder"),
        ("no_split", "no folder"),
        ("empty_split", "no images *_leftImg8bit.png"),
        ("test", "not public"),
    ],
)
def test_a_broken_tree_stops_evaluation(
    root: Path, tmp_path: Path, run_cli: RunCli, what: str, words: str
) -> None:
    images = image_file(root, "val", NAMES[0]).parents[2]
    if what == "no_images":
        images.rename(root / "pictures")
    elif what == "no_masks":
        (root / "gtFine").rename(root / "gtCoarse")
    elif what == "no_split":
        (images / "val").rename(images / "valid")
    elif what == "empty_split":
        for name in NAMES:
            image_file(root, "val", name).unlink()
    command = ["train", "--data.name", "cityscapes", "--data.root", root, "--run", tmp_path / "run"]
    if what == "test":
        command += ["--data.val_split", "test"]
    code, _, error = run_cli(*command)
    assert code == 2
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "run").exists()
