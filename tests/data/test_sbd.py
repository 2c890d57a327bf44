"""SBD beside VOC 2012: which mask counts, and every error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, one_line
from scipy.io import savemat
from tiny_runs import FIT_FLAGS, NO_REPORT, model_flags
from voc_trees import (
    SBD_MASK,
    TRAIN,
    VAL,
    add_aug_folder,
    cut,
    mask_of,
    root_of,
    write_devkit,
    write_list,
    write_mat,
    write_sbd,
)

from aicsd.data import check_dataset, open_dataset, open_images, survey
from aicsd.data.voc import CLASSES, open_sbd


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_devkit(tmp_path)


@pytest.fixture
def sbd(tmp_path: Path, devkit: Path) -> Path:
    return write_sbd(tmp_path / "sbd", devkit)


AUGMENTED = ["2007_a", "2007_b", "2009_x", "2009_y", "2010_z"]


def augmented(devkit: Path, **options: object) -> dict[str, tuple[Path, np.ndarray]]:
    dataset = open_dataset("voc", root_of(devkit), "trainaug", options)
    masks = [dataset.read(index).mask for index in range(len(dataset))]
    paths = open_images("voc", root_of(devkit), "trainaug", options)
    return dict(zip(dataset.names, zip(paths, masks, strict=True), strict=True))


def assert_augmented(found: dict[str, tuple[Path, np.ndarray]]) -> None:
    for name in TRAIN:
        assert np.array_equal(found[name][1], mask_of(name)), "VOC's own mask must win"
    for name in ("2009_x", "2009_y", "2010_z"):
        assert np.array_equal(found[name][1], SBD_MASK)


@pytest.mark.parametrize("below", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_release_of_sbd(devkit: Path, sbd: Path, below: str) -> None:
    found = augmented(devkit, sbd=str(sbd / below))
    assert list(found) == AUGMENTED
    assert_augmented(found)
    place = sbd / "benchmark_RELEASE" / "dataset"
    assert found["2009_x"][0] == devkit / "JPEGImages" / "2009_x.jpg"
    assert found["2009_y"][0] == place / "img" / "2009_y.jpg"


def test_folder_of_augmented_masks_without_a_list(devkit: Path) -> None:
    add_aug_folder(devkit)
    found = augmented(devkit)
    assert list(found) == AUGMENTED
    assert_augmented(found)


def test_folder_of_augmented_masks_with_its_list(devkit: Path) -> None:
    add_aug_folder(devkit)
    names = ["2010_z", "2007_b", "2007_a", "2009_x", "2009_y"]
    write_list(devkit / "ImageSets" / "Segmentation" / "trainaug.txt", names)
    found = augmented(devkit)
    assert list(found) == names
    assert_augmented(found)


def test_a_list_that_shares_images_with_val_is_noted(devkit: Path) -> None:
    add_aug_folder(devkit)
    write_list(devkit / "ImageSets" / "Segmentation" / "trainaug.txt", ["2009_x", "2008_c"])
    assert any("2008_c" in note for note in survey("voc", root_of(devkit), "trainaug").notes)


def test_sbd_is_no_hindrance_to_the_other_splits(devkit: Path, sbd: Path) -> None:
    assert open_dataset("voc", root_of(devkit), "val", {"sbd": str(sbd)}).names == VAL


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_trainaug(
    devkit: Path, sbd: Path, tmp_path: Path, run_cli: RunCli, workers: int
) -> None:
    code, output, error = run_cli(
        "train", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.train_split", "trainaug", "--data.options.sbd", sbd, "--data.batch_size", "4",
        "--epochs", "1", *FIT_FLAGS, *model_flags("model"), "--run", tmp_path / "run",
        "--data.workers", workers, *NO_REPORT,
    )  # fmt: skip
    assert code == 0, error
    assert "val mIoU" in output
    saved = (tmp_path / "run" / "metrics.json").read_text()
    assert all(f'"{name}"' in saved for name in CLASSES.names)


def test_all_of_sbd(sbd: Path) -> None:
    dataset = open_sbd(sbd)
    assert len(dataset) == 5
    assert list(check_dataset(dataset, decode_images=True)) == []
    assert dataset.notes == ["5 images; the official split has 11355"]


def test_trainaug_without_sbd_tells_where_to_get_it(devkit: Path, tmp_path: Path) -> None:
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug"))
    assert "SegmentationClassAug" in message
    assert "data.options.sbd" in message
    options = {"sbd": str(tmp_path / "nowhere")}
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug", options))
    assert f"no SBD in {tmp_path / 'nowhere'}" in message


def test_a_misspelt_option_is_named(devkit: Path) -> None:
    message = one_line(lambda: open_dataset("voc", root_of(devkit), "trainaug", {"sdb": "x"}))
    assert "'sdb'; did you mean 'sbd'" in message
    message = one_line(lambda: open_images("voc", root_of(devkit), "train", {"sdb": "x"}))
    assert "'sdb'; did you mean 'sbd'" in message


# broken files, through the command line


def mat_file(sbd: Path) -> Path:
    return sbd / "benchmark_RELEASE" / "dataset" / "cls" / "2009_x.mat"


BROKEN_MAT: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, "not a readable SBD mask"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable SBD mask"),
    "text": (lambda path: path.write_text("words" * 100), "not a readable SBD mask"),
    "no_struct": (lambda path: savemat(path, {"a": 1}), "not a readable SBD mask"),
    "no_field": (lambda path: savemat(path, {"GTcls": {"a": 1}}), "not a readable SBD mask"),
    "cube": (lambda path: write_mat(path, np.zeros((4, 5, 3), np.uint8)), "shape (4, 5, 3)"),
    "fractions": (lambda path: write_mat(path, np.full((10, 20), 0.5)), "float64"),
    "class_id": (lambda path: write_mat(path, np.full((10, 20), 21, np.uint8)), "class id 21"),
    "large_id": (lambda path: write_mat(path, np.full((10, 20), 263, np.uint16)), "263"),
    "negative": (lambda path: write_mat(path, np.full((10, 20), -1, np.int8)), "-1"),
    "size": (lambda path: write_mat(path, SBD_MASK[:, :19]), "is 19x10"),
    "missing": (Path.unlink, "2009_x.mat"),
}


@pytest.mark.parametrize("how", BROKEN_MAT)
def test_a_broken_mat_is_one_line(devkit: Path, sbd: Path, run_cli: RunCli, how: str) -> None:
    damage, words = BROKEN_MAT[how]
    damage(mat_file(sbd))
    code, output, error = run_cli(
        "data", "check", "--data.name", "voc", "--data.root", root_of(devkit),
        "--data.split", "trainaug", "--data.options.sbd", sbd,
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    assert str(mat_file(sbd)) in error
    assert words in error
    assert "trainaug: 5 images, 1 cannot be used" in output
