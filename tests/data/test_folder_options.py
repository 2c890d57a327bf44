"""A user's own data in other layouts: which files belong together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCli
from folder_files import BINARY, MASK, image, mask, refused, train, write_names

from aicsd.data import open_dataset, open_images, survey
from aicsd.data.file_dataset import FileDataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_names(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "place_of_image", "place_of_mask"),
    [
        (None, "{stem}_mask.png", "images/train/a.jpg", "masks/train/a_mask.png"),
        (None, "{stem}_mask", "images/train/a.jpg", "masks/train/a_mask.tif"),
        (None, "annotations/{split}/{stem}.png", "images/train/a.jpg", "annotations/train/a.png"),
        ("{split}/img", "{split}/gt/{stem}", "train/img/a.png", "train/gt/a.bmp"),
        ("{split}", "{split}/{stem}_mask.png", "train/a.png", "train/a_mask.png"),
        ("{split}", "{split}/{stem}_mask", "train/a.jpg", "train/a_mask.png"),
        (None, "labels/{stem}/{split}.png", "images/train/a.jpg", "labels/a/train.png"),
        (None, "m [{stem}].png", "images/train/a.jpg", "masks/train/m [a].png"),
    ],
)
def test_places_and_names_of_masks(
    root: Path, images: str | None, masks: str, place_of_image: str, place_of_mask: str
) -> None:
    image(root / place_of_image)
    mask(root / place_of_mask)
    options = {"masks": masks} | ({"images": images} if images else {})
    data = train(root, **options)
    assert data.names == ["a"]
    assert np.array_equal(data.read(0).mask, MASK)
    assert open_images("folder", str(root), "train", options) == [root / place_of_image]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": "mask.png"}, "must contain {stem}"),
        ({"masks": "{name}.png"}, "{name} is unknown (allowed: split, stem)"),
        ({"images": "{stem}"}, "{stem} is unknown (allowed: split)"),
        ({"masks": 7}, "data.options.masks is 7; it must be a path"),
        ({"nested": "yes"}, "nested is 'yes'; it must be true or false"),
        ({"masks": "{stem}_gt.png"}, "a mask has the name a_gt.png"),
        ({"classes": "names.txt"}, "data.options.classes: no file"),
        ({"nearest": True}, "nearest needs mask_values, or masks in colours"),
    ],
)
def test_options_that_make_no_sense(root: Path, options: dict[str, Any], words: str) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    assert words in refused(root, **options)


def test_two_files_of_one_name_are_refused(root: Path) -> None:
    image(root / "images/train/a.png")
    mask(root / "masks/train/a.png")
    assert len(train(root)) == 1
    image(root / "images/train/a.jpg")
    message = refused(root)
    assert "images/train/a.jpg and" in message
    assert "have the same name, 'a'" in message
    (root / "images/train/a.jpg").unlink()
    mask(root / "masks/train/a.tif")
    message = refused(root)
    assert "has two masks" in message
    assert "a.png and" in message
    assert "layout of" not in message


def test_images_in_folders_below(root: Path) -> None:
    for name in ("day/a", "night/a", "night/late/b"):
        image(root / f"images/train/{name}.jpg")
        mask(root / f"masks/train/{name}.png")
    message = refused(root)
    assert "no images in" in message
    assert "3 are in folders below" in message
    assert "data.options nested: true takes them" in message
    assert train(root, nested=True).names == ["day/a", "night/a", "night/late/b"]
    image(root / "images/train/c.jpg")
    mask(root / "masks/train/c.png")
    data = train(root)
    assert data.names == ["c"]
    assert isinstance(data, FileDataset)
    (note,) = [note for note in data.notes if "folders" in note]
    assert "left out" in note
    assert "nested: true" in note
    whole = train(root, nested=True)
    assert len(whole) == 4
    assert isinstance(whole, FileDataset)
    assert whole.notes == []
    (root / "masks/train/night/late/b.png").unlink()
    assert "no mask for" in refused(root, nested=True)


def test_templates_of_nested_folders(root: Path) -> None:
    image(root / "images/train/day/a.jpg")
    mask(root / "masks/train/day/m_a.png")
    assert train(root, nested=True, masks="m_{stem}.png").names == ["day/a"]


def test_links_are_followed_once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("store")
    image(elsewhere / "x/a.png")
    mask(elsewhere / "y/a.png")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "images/train").symlink_to(elsewhere / "x")
    (root / "masks/train").symlink_to(elsewhere / "y")
    (elsewhere / "x/loop").symlink_to(elsewhere / "x")
    for options in ({}, {"nested": True}):
        data = train(root, **options)
        assert data.names == ["a"]
        assert np.array_equal(data.read(0).mask, MASK)


def test_masks_without_an_image_are_told(root: Path) -> None:
    image(root / "images/train/a.png")
    for name in ("a", "b", "c"):
        mask(root / f"masks/train/{name}.png")
    mask(root / "masks/train/._a.png")
    found = survey("folder", str(root), "train")
    assert found.images == 1
    assert any("2 masks have no image and are left out, such as" in note for note in found.notes)


def test_names_that_are_no_utf8_can_be_printed_and_saved(root: Path) -> None:
    name = os.fsdecode(b"stra\xdfe")
    image(root / f"images/train/{name}.png")
    mask(root / f"masks/train/{name}.png")
    data = train(root)
    assert data.names == ["stra\\xdfe"]
    data.names[0].encode()
    assert np.array_equal(data.read(0).mask, MASK)


# through the command line


def test_options_reach_a_training(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    from tiny_runs import FIT_FLAGS, NO_REPORT, model_flags

    for split, count in (("train", 4), ("val", 1)):
        for number in range(count):
            image(root / f"{split}/{number}.png", number)
            mask(root / f"{split}/{number}_gt.png", BINARY)
    shutil.copy(root / "classes.txt", root / "names.txt")
    (root / "names.txt").write_text("ground\nobject\n")
    options = (
        "{images: '{split}', masks: '{split}/{stem}_gt.png', classes: names.txt, "
        "mask_values: {0: ground, 255: object}}"
    )
    code, output, error = run_cli(
        "train", "--data.root", root, "--data.options", options, "--data.batch_size", 2,
        "--epochs", 1, *FIT_FLAGS, *model_flags("model"), "--run", tmp_path / "run",
        *NO_REPORT,
    )  # fmt: skip
    assert code == 0, error
    code, output, error = run_cli("data", "check", "--data.root", root, "--data.options", options)
    assert code == 0, error
    assert "object" in output


@pytest.mark.skipif(
    not Path("../shared/data/labelmefacade").is_dir(),
    reason="LabelMeFacade is not beside the project",
)
def test_facades_are_read_in_place(tmp_path: Path) -> None:
    table = tmp_path / "facade.csv"
    table.write_text(
        "ignored,0,0,0\nbuilding,128,0,0\ncar,128,0,128\ndoor,128,128,0\npavement,128,128,128\n"
        "road,128,64,0\nsky,0,128,128\nvegetation,0,128,0\nwindow,0,0,128\n"
    )
    options = {"classes": str(table), "masks": "masks_rgb/{split}/{stem}.png"}
    data = open_dataset("auto", "../shared/data/labelmefacade", "val", options)
    assert len(data) == 145
    found = np.zeros(256, np.int64)
    for index in range(0, 145, 29):
        found += np.bincount(data.read(index).mask.ravel(), minlength=256)
    assert (found[:8] > 0).sum() >= 6
    assert 0 < found[255] < found.sum() / 5
