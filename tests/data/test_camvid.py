"""CamVid: its layout, and the unlabelled id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aicsd.data import check_dataset, open_dataset
from aicsd.data.camvid import CLASSES
from aicsd.data.open import AUTO, find_name
from aicsd.errors import UserError

CAMVID = Path(__file__).parents[2].parent / "shared" / "data" / "camvid"
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid beside the repository")


def tree(root: Path, mask: np.ndarray) -> str:
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for folder, array in ((split, image), (f"{split}annot", mask)):
            (root / folder).mkdir(parents=True)
            Image.fromarray(array).save(root / folder / "0001TP_006690.png")
    return str(root)


def test_the_unlabelled_id_is_ignored(tmp_path: Path) -> None:
    mask = np.arange(12, dtype=np.uint8).repeat(4).reshape(6, 8)
    dataset = open_dataset("camvid", tree(tmp_path, mask), "val")
    expected = np.where(mask == 11, 255, mask)
    assert np.array_equal(dataset.read(0).mask, expected)
    assert dataset.names == ["0001TP_006690"]
    assert list(check_dataset(dataset)) == []


@pytest.mark.parametrize("value", [12, 30, 254, 255])
def test_every_other_id_is_ignored_too(tmp_path: Path, value: int) -> None:
    mask = np.full((4, 4), value, np.uint8)
    mask[0, 0] = 10
    read = open_dataset("camvid", tree(tmp_path, mask), "train").read(0).mask
    assert read[0, 0] == 10
    assert (read.ravel()[1:] == 255).all()


def test_a_folder_with_classes_of_its_own_is_another_dataset(tmp_path: Path) -> None:
    """Ids of other classes would be taken for those of CamVid, or ignored."""
    root = tree(tmp_path, np.zeros((4, 4), np.uint8))
    assert find_name(AUTO, root) == "camvid"
    (tmp_path / "classes.txt").write_text("wall\nwindow\n")
    assert find_name(AUTO, root) == "folder"


def test_eleven_classes_of_distinct_colours() -> None:
    assert len(CLASSES.names) == len(CLASSES.palette) == 11
    assert CLASSES.names[:4] == ("Sky", "Building", "Pole", "Road")
    assert CLASSES.names[8] == "Car"
    assert len(set(CLASSES.palette)) == 11


def test_a_missing_part_is_named_with_the_layout(tmp_path: Path) -> None:
    root = tree(tmp_path, np.zeros((4, 4), np.uint8))
    for split, folder in (("test", "test"), ("val", "valannot")):
        if split == "val":
            (tmp_path / "valannot").rename(tmp_path / "elsewhere")
        with pytest.raises(UserError) as caught:
            open_dataset("camvid", root, split)
        assert f"no folder {tmp_path / folder}" in str(caught.value)
        assert "annot" in str(caught.value)


@needs_camvid
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_the_real_splits(split: str, count: int) -> None:
    dataset = open_dataset("camvid", str(CAMVID), split)
    assert len(dataset) == len(set(dataset.names)) == count
    seen: set[int] = set()
    for index in range(0, count, 20):
        image, mask, _ = dataset.read(index)
        assert image.shape == (360, 480, 3)
        assert mask.shape == (360, 480)
        seen |= set(np.unique(mask).tolist())
    assert seen == {*range(11), 255}


@needs_camvid
def test_the_real_splits_share_no_image() -> None:
    train, val = (set(open_dataset("camvid", str(CAMVID), s).names) for s in ("train", "val"))
    assert not train & val
