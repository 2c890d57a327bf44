"""Contract of every dataset: the protocol, its wrappers, and the facts of its descriptor."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import TREES, Tree

from aicsd.data import DATASETS, SegDataset, open_dataset, open_images, survey
from aicsd.data.file_dataset import FileDataset
from aicsd.data.memory import CachedDataset
from aicsd.data.open import AUTO, find_name
from aicsd.data.wrappers import PartlyLabelled, Subset
from aicsd.errors import UserError


@pytest.fixture(params=DATASETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(name: str, tmp_path: Path) -> Tree:
    if not DATASETS[name].layout:
        pytest.importorskip("sklearn")
    return TREES[name](tmp_path / "data")


@pytest.fixture
def data(name: str, tree: Tree) -> SegDataset:
    return open_dataset(name, tree.root, "train", tree.options)


def test_every_dataset_has_a_tree() -> None:
    assert set(TREES) == set(DATASETS)


def test_samples(data: SegDataset, tree: Tree) -> None:
    assert len(data) == len(data.names) == len(set(data.names)) > 0
    for index in range(len(data)):
        image, mask, maps = data.read(index)
        again = data.read(index)
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert data.size(index) == mask.shape
        assert set(np.unique(mask)) <= {*range(len(data.classes.names)), 255}
        assert bool(set(np.unique(mask)) - {255}) == tree.has_labels
        assert maps is None
        assert np.array_equal(again.image, image)
        assert np.array_equal(again.mask, mask)
    assert list(data.labelled) == list(range(len(data) if tree.has_labels else 0))


def test_spawned_workers_get_the_same_samples(data: SegDataset) -> None:
    sent: SegDataset = pickle.loads(pickle.dumps(data))
    assert (sent.names, sent.classes) == (data.names, data.classes)
    for index in range(len(data)):
        one, other = sent.read(index), data.read(index)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.mask, other.mask)
        assert one.maps is other.maps is None


def test_wrappers_delegate(data: SegDataset, tree: Tree) -> None:
    one = Subset(data, 1)
    first = [0] if tree.has_labels else []
    assert (one.names, one.size(0), one.labelled) == (data.names[:1], data.size(0), first)
    partly = PartlyLabelled(data, 1)
    assert [partly.size(i) for i in range(len(data))] == [data.size(i) for i in range(len(data))]
    assert partly.labelled == first
    cached = CachedDataset(partly, 1, shared=False)
    assert (cached.size(0), list(cached.labelled)) == (data.size(0), first)
    assert np.array_equal(cached.read(0).image, data.read(0).image)


def test_a_check_finds_it_sound(name: str, tree: Tree) -> None:
    for split in ("train", "val"):
        found = survey(name, tree.root, split, tree.options)
        assert (found.problems, found.refusals) == ([], ())
        data = open_dataset(name, tree.root, split, tree.options)
        masks = np.concatenate([data.read(i).mask.ravel() for i in range(len(data))])
        counts = np.bincount(masks, minlength=256)
        assert found.pixels == tuple(counts[: len(data.classes.names)])
        assert found.ignored == counts[255]
        assert sum(found.sizes.values()) == len(data)


def test_images_of_splits_with_and_without_masks(name: str, tree: Tree) -> None:
    if not isinstance(open_dataset(name, tree.root, "train", tree.options), FileDataset):
        with pytest.raises(UserError, match="has no image files"):
            open_images(name, tree.root, "train", tree.options)
        return
    train = open_dataset(name, tree.root, "train", tree.options)
    images = open_images(name, tree.root, "train", tree.options)
    assert [path.name.split("_")[0].split(".")[0] for path in images] == [
        name.removesuffix("_leftImg8bit") for name in train.names
    ]
    for split in tree.unlabelled:
        (image,) = open_images(name, tree.root, split, tree.options)
        assert image.is_file()


def test_the_layout_is_recognised(name: str, tree: Tree) -> None:
    assert find_name(AUTO, tree.root) == name


def test_what_is_refused(name: str, tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'no_such'"):
        open_dataset(name, tree.root, "train", {"no_such": 1})
    with pytest.raises(UserError, match="no_such"):
        open_dataset(name, tree.root, "no_such", tree.options)
    if DATASETS[name].layout:
        with pytest.raises(UserError, match=r"needs data\.root; expected layout: ROOT"):
            open_dataset(name, None, "train")
        with pytest.raises(UserError, match=r"no folder .*expected layout: ROOT"):
            open_dataset(name, str(tmp_path / "nowhere"), "train")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=rf"layout of {name}: ROOT"):
            open_dataset(name, str(tmp_path / "empty"), "train")
    else:
        with pytest.raises(UserError, match=r"data\.root is .*generated and reads no files"):
            open_dataset(name, str(tmp_path), "train")


def test_the_descriptor_is_whole(name: str, data: SegDataset) -> None:
    entry = DATASETS[name]
    if entry.classes is not None:
        assert entry.classes == data.classes
        assert entry.counts
        assert entry.usual_size is not None
    assert len(data.classes.names) == len(data.classes.palette) == len(set(data.classes.names))
    assert all(0 <= value <= 255 for color in data.classes.palette for value in color)
    if entry.server is not None:
        assert len(set(entry.server.stored_ids)) == len(data.classes.names)
    for download in entry.downloads.values():
        assert "{root}" in download.usage
        assert all(archive.url or download.by_hand for archive in download.archives)
