"""VOC 2012: layouts, splits, and every error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, one_line
from PIL import Image
from voc_trees import TRAIN, VAL, cut, mask_of, root_of, write_devkit, write_png

from aicsd.data import check_dataset, open_dataset, open_images
from aicsd.data.voc import CLASSES, COUNTS, voc_color


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_devkit(tmp_path)


# VOC alone


@pytest.mark.parametrize("above", [0, 1, 2])
def test_every_root_finds_the_same_files(devkit: Path, above: int) -> None:
    root = (devkit, *devkit.parents)[above]
    dataset = open_dataset("voc", str(root), "train")
    assert dataset.names == TRAIN
    for index, name in enumerate(TRAIN):
        image, mask, _ = dataset.read(index)
        assert np.array_equal(mask, mask_of(name))
        assert image.shape == (*mask.shape, 3)
        with Image.open(devkit / "JPEGImages" / f"{name}.jpg") as picture:
            assert np.abs(image.astype(int) - np.asarray(picture)).max() <= 4


@pytest.mark.parametrize(("split", "names"), [("val", VAL), ("trainval", TRAIN + VAL)])
def test_splits_are_the_lists_in_their_order(devkit: Path, split: str, names: list[str]) -> None:
    assert open_dataset("voc", root_of(devkit), split).names == names
    paths = open_images("voc", root_of(devkit), split)
    assert paths == [devkit / "JPEGImages" / f"{name}.jpg" for name in names]


def test_the_single_pixel_and_the_void_outline_are_kept(devkit: Path) -> None:
    mask = open_dataset("voc", root_of(devkit), "train").read(1).mask
    assert mask.shape == (50, 33)
    assert (mask == 20).sum() == 1
    assert mask[-1, 0] == 20
    assert (mask == 255).sum() == 3


def test_an_image_without_any_label(devkit: Path) -> None:
    write_png(devkit / "SegmentationClass" / "2008_c.png", np.full((17, 17), 255, np.uint8))
    dataset = open_dataset("voc", root_of(devkit), "val")
    assert (dataset.read(0).mask == 255).all()
    assert list(check_dataset(dataset, decode_images=True)) == []


def test_classes_and_palette_are_those_of_voc() -> None:
    assert len(CLASSES.names) == len(CLASSES.palette) == 21
    assert CLASSES.names[0] == "background"
    assert list(CLASSES.names[1:]) == sorted(CLASSES.names[1:])
    for class_id, color in {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        7: (128, 128, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
    }.items():
        assert CLASSES.palette[class_id] == color
    assert voc_color(255) == (224, 224, 192)


def test_a_list_of_ones_own_is_a_split(devkit: Path) -> None:
    path = devkit / "ImageSets" / "Segmentation" / "few.txt"
    path.write_text(
        "\ufeff/JPEGImages/2008_c.jpg /SegmentationClass/2008_c.png\r\n\n2007_a  1\n2008_c\n"
    )
    assert open_dataset("voc", root_of(devkit), "few").names == ["2008_c", "2007_a"]


# the test split


def test_the_test_split_has_images_only(devkit: Path, run_cli: RunCli) -> None:
    root = root_of(devkit)
    assert open_images("voc", root, "test") == [devkit / "JPEGImages" / "2008_t.jpg"]
    assert "not public" in one_line(lambda: open_dataset("voc", root, "test"))
    flags = ("--data.name", "voc", "--data.root", root)
    code, output, error = run_cli("data", "check", *flags, "--data.split", "test")
    assert (code, error) == (0, "")
    assert "test: 1 images, 0 cannot be used" in output
    assert "only images are checked" in output
    (devkit / "JPEGImages" / "2008_t.jpg").unlink()
    assert "2008_t.jpg" in one_line(lambda: open_images("voc", root, "test"))
    code, _, error = run_cli("data", "check", *flags, "--data.split", "test")
    assert (code, error.count("\n")) == (2, 1)
    assert "2008_t.jpg" in error


def test_training_on_the_test_split_is_refused(
    devkit: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    code, _, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.train_split", "test", "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    assert "VOC test are not public" in error
    assert not (tmp_path / "run").exists()


def test_masks_of_the_test_split_are_used_where_they_are(devkit: Path) -> None:
    write_png(devkit / "SegmentationClass" / "2008_t.png", mask_of("2008_t"))
    dataset = open_dataset("voc", root_of(devkit), "test")
    assert np.array_equal(dataset.read(0).mask, mask_of("2008_t"))


def test_check_names_every_bad_file_and_the_counts(devkit: Path, run_cli: RunCli) -> None:
    (devkit / "SegmentationClass" / "2007_a.png").unlink()
    (devkit / "JPEGImages" / "2007_b.jpg").unlink()
    cut(devkit / "JPEGImages" / "2008_c.jpg")
    write_png(devkit / "SegmentationClass" / "2008_d.png", np.full((1, 9), 21, np.uint8))
    code, output, error = run_cli("data", "check", "--data.name", "voc", "--data.root", devkit)
    assert code == 2
    lines = error.splitlines()
    assert len(lines) == 4
    for line, name in zip(
        lines, ("2007_a.png", "2007_b.jpg", "2008_c.jpg", "2008_d.png"), strict=True
    ):
        assert line.startswith("aicsd: error: ")
        assert name in line
    assert "class id 21" in lines[3]
    assert output.splitlines() == [
        "train: 2 images, 2 cannot be used",
        "train: note: 2 images; the official split has 1464",
        "val: 2 images, 2 cannot be used",
        "val: note: 2 images; the official split has 1449",
    ]


def test_a_sound_tree_of_another_size_is_no_error(devkit: Path, run_cli: RunCli) -> None:
    code, output, error = run_cli("data", "check", "--data.name", "voc", "--data.root", devkit)
    assert (code, error) == (0, "")
    assert "1464" in output


def test_complete_splits_are_not_noted() -> None:
    from aicsd.data.file_dataset import FileDataset, Pair

    pairs = [Pair(Path(f"{i}.jpg"), Path(f"{i}.png")) for i in range(COUNTS["train"])]
    assert FileDataset(pairs, CLASSES, official_count=1464).notes == []
    assert (COUNTS["val"], COUNTS["trainval"], COUNTS["trainaug"]) == (1449, 2913, 10582)


def break_tree(devkit: Path, what: str) -> None:
    lists = devkit / "ImageSets" / "Segmentation"
    if what == "no_devkit":
        (devkit / "JPEGImages").rename(devkit / "Images")
    elif what == "no_list":
        (lists / "train.txt").unlink()
    elif what == "empty_list":
        (lists / "train.txt").write_text("\n")
    elif what == "binary_list":
        (lists / "train.txt").write_bytes(b"\xff\xfe\x80")
    elif what == "no_masks":
        (devkit / "SegmentationClass").rename(devkit / "Elsewhere")
    elif what == "mask_missing":
        (devkit / "SegmentationClass" / "2007_b.png").unlink()
    elif what == "images_missing":
        for name in TRAIN:
            (devkit / "JPEGImages" / f"{name}.jpg").unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no_devkit", ["no folder JPEGImages", "VOCdevkit/VOC2012"]),
        ("no_list", ["no list", "train.txt", "lists there: test, trainval, val"]),
        ("empty_list", ["train.txt lists no image"]),
        ("binary_list", ["train.txt cannot be read"]),
        ("no_masks", ["no folder", "SegmentationClass"]),
        ("mask_missing", ["no file", "SegmentationClass/2007_b.png", "aicsd data check"]),
        ("images_missing", ["no file", "JPEGImages/2007_a.jpg and 1 more files"]),
    ],
)
def test_a_broken_tree_stops_training(
    devkit: Path, tmp_path: Path, run_cli: RunCli, what: str, words: list[str]
) -> None:
    break_tree(devkit, what)
    code, _, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit), "--data.check", "false",
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()
