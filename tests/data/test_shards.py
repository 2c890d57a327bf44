"""Tar files as a dataset: the same samples, order and training as the same files in folders."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, write_folder
from dataset_trees import pack
from tiny_runs import FIT_FLAGS, NO_REPORT, aicsd, model_flags, same_weights

from aicsd.data import open_dataset
from aicsd.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_samples_are_those_of_the_files(root: Path, tmp_path: Path) -> None:
    shards = pack(root, tmp_path / "shards")
    for split in ("train", "val"):
        wanted = open_dataset("folder", str(root), split)
        found = open_dataset("auto", str(shards), split)
        assert found.names == [f"photos/{name}" for name in wanted.names]
        assert found.classes == wanted.classes
        for index in range(len(wanted)):
            assert found.size(index) == wanted.size(index)
            for one, other in zip(found.read(index)[:2], wanted.read(index)[:2], strict=True):
                assert np.array_equal(one, other)


def test_a_training_is_that_of_the_files(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """A training with loaders, interrupted and resumed."""
    shards = pack(root, tmp_path / "shards", per_tar=5)
    flags = [
        "train",
        "--data.batch_size",
        "4",
        *FIT_FLAGS,
        *model_flags("model"),
        "--epochs",
        "2",
        *NO_REPORT,
    ]
    aicsd(*flags, "--data.name", "folder", "--data.root", root, "--run", tmp_path / "a")
    aicsd(*flags, "--data.root", shards, "--run", tmp_path / "b", "--data.workers", "2")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert run_cli("data", "check", "--data.root", shards)[0] == 0


def test_ends_of_masks(root: Path, tmp_path: Path) -> None:
    shards = pack(root, tmp_path / "shards", mask="ids.png")
    options = {"masks": "ids.png"}
    assert len(open_dataset("shards", str(shards), "train", options).labelled) == 8
    with pytest.raises(UserError, match=r"has ids.png and png: say which is the mask"):
        open_dataset("shards", str(shards), "train")


def test_images_alone_have_no_labels(root: Path, tmp_path: Path) -> None:
    shards = pack(root, tmp_path / "shards")
    with tarfile.open(shards / "unlabelled.tar", "w") as tar:
        for image in sorted((root / "images" / "val").iterdir()):
            tar.add(image, image.name)
    data = open_dataset("shards", str(shards), "unlabelled")
    assert (len(data), list(data.labelled)) == (4, [])
    assert (data.read(0).mask == 255).all()


def compress(shards: Path) -> None:
    tar = shards / "train-000000.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))


def cut(shards: Path) -> None:
    tar = shards / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])


def repeat(shards: Path) -> None:
    (shards / "train-000009.tar").write_bytes((shards / "train-000000.tar").read_bytes())


def colours(shards: Path) -> None:
    (shards / "classes.txt").unlink()
    (shards / "classes.csv").write_text("name,r,g,b\na,1,2,3\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (compress, "train-000000.tar is not an uncompressed tar file"),
        (cut, "train-000000.tar"),
        (repeat, "have the same name, 'photos/000'"),
        (colours, "masks in shards hold class ids"),
    ],
)
def test_refused(root: Path, tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    shards = pack(root, tmp_path / "shards")
    change(shards)
    with pytest.raises(UserError, match=words):
        open_dataset("shards", str(shards), "train").read(0)
