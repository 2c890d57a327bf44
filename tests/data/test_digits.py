"""Digit scenes: the same in any process, splits that share nothing, masks true to the picture."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from started import SERVER

pytest.importorskip("sklearn")

from aicsd.data import digits
from aicsd.data.digits import Digits
from aicsd.data.protocol import Sample
from aicsd.errors import UserError


def same(a: Sample, b: Sample) -> bool:
    return np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)


def only_glyph(monkeypatch: pytest.MonkeyPatch, glyph: np.ndarray, label: int) -> None:
    """Let every scene be made of one known digit."""
    real = digits.material("train")
    fake = real._replace(glyphs=glyph[None].astype(np.float32), labels=np.array([label]))
    monkeypatch.setattr(digits, "material", lambda split: fake)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("size", [32, 97, 128])
def test_samples_have_the_promised_form(split: str, size: int) -> None:
    data = Digits(split, size=size, scenes=5)
    for index in range(len(data)):
        image, mask, _ = data.read(index)
        assert image.shape == (size, size, 3)
        assert mask.shape == (size, size)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.max() <= 10
        assert 0 < np.count_nonzero(mask) < mask.size / 2


def test_names_and_lengths() -> None:
    train, val = Digits(), Digits("val")
    assert (len(train), len(val), len(Digits("val", scenes=7))) == (400, 100, 7)
    assert (train.names[7], val.names[-1]) == ("train_0007", "val_0099")
    assert len(set(train.names)) == 400


def test_palette_has_a_distinct_colour_for_each_class() -> None:
    names, palette = digits.CLASSES
    assert names == ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert palette[0] == (0, 0, 0)
    assert len(palette) == 11
    colors = np.array(palette, float)
    distance = np.linalg.norm(colors[:, None] - colors, axis=-1) + 1e9 * np.eye(11)
    assert distance.min() > 60


def test_read_depends_on_seed_split_and_index_only() -> None:
    forward, backward = Digits(scenes=6), Digits(scenes=50)
    first = [forward.read(index) for index in range(6)]
    last = [backward.read(index) for index in reversed(range(6))][::-1]
    assert all(map(same, first, last))
    others = [Digits(seed=1).read(0), Digits("val").read(0), *first[1:]]
    assert not any(same(first[0], other) for other in others)
    layouts = [digits.scene_rng(0, split, 0).random() for split in digits.SCENES]
    assert layouts[0] != layouts[1]


def test_read_leaves_the_global_random_state_alone() -> None:
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    Digits().read(0)
    assert np.random.random() == expected


def test_pickles_small_and_reads_the_same_in_another_process() -> None:
    data = Digits("val", size=64)
    assert len(pickle.dumps(data)) < 5000
    with ProcessPoolExecutor(1, SERVER) as pool:
        assert same(pool.submit(data.read, 5).result(), data.read(5))


def test_splits_share_no_digit() -> None:
    train, val = digits.material("train"), digits.material("val")
    assert sorted([*train.rows, *val.rows]) == list(range(1797))
    seen = {glyph.tobytes() for glyph in train.glyphs}
    assert not any(glyph.tobytes() in seen for glyph in val.glyphs)
    for part, least in ((train, 130), (val, 30)):
        assert np.bincount(part.labels, minlength=10).min() > least


def test_splits_share_no_photo_pixel() -> None:
    whole = digits._load()[2]
    train, val = digits.material("train").photos, digits.material("val").photos
    assert len(whole) == len(train) == len(val) == 2
    for photo, left, right in zip(whole, train, val, strict=True):
        assert np.shares_memory(photo, left)
        assert np.shares_memory(photo, right)
        assert not np.shares_memory(left, right)
        assert left.size + right.size == photo.size
        # else the largest crop would not fit
        assert min(*left.shape[:2], *right.shape[:2]) >= digits.CROP_SIDE[1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_scene_uses_the_material_of_its_split_only(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = digits.material
    black = {part: real(part) for part in digits.SCENES}
    other = "val" if split == "train" else "train"
    before = [Digits(split).read(index) for index in range(5)]
    for emptied, changes in ((other, False), (split, True)):
        zeros = black[emptied]._replace(photos=tuple(0 * p for p in black[emptied].photos))
        poisoned = {**black, emptied: zeros}
        monkeypatch.setattr(digits, "material", poisoned.__getitem__)
        after = [Digits(split).read(index) for index in range(5)]
        assert [not same(a, b) for a, b in zip(before, after, strict=True)] == [changes] * 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_occurs_often(split: str) -> None:
    data = Digits(split, size=64, scenes=100)
    present = np.zeros(11, int)
    for index in range(len(data)):
        present[np.unique(data.read(index).mask)] += 1
    assert present[0] == 100
    assert present[1:].min() >= 15


def test_mask_is_where_the_picture_was_changed() -> None:
    data = Digits("train")
    photos = digits.material("train").photos
    for index in range(20):
        image, mask, _ = data.read(index)
        clean = digits.background(digits.scene_rng(0, "train", index), photos, 128)
        change = np.abs(image - clean).max(axis=-1)
        ink = (mask > 0).astype(np.uint8)
        far = cv2.dilate(ink, np.ones((7, 7))) == 0
        assert np.mean(change[far] > 10) < 0.003  # faint ends of strokes
        core = cv2.erode(ink, np.ones((3, 3))) == 1
        assert np.mean(change[core] > 30) > 0.9


def test_class_id_is_the_digit_plus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    only_glyph(monkeypatch, np.eye(8), label=3)
    assert np.unique(Digits(scenes=1).read(0).mask).tolist() == [0, 4]


def test_real_labels_belong_to_their_glyphs() -> None:
    """A zero is empty in the middle and a one is not, in either split."""
    for split in digits.SCENES:
        source = digits.material(split)
        center = source.glyphs[:, 3:5, 3:5].mean(axis=(1, 2))
        assert center[source.labels == 0].mean() < 0.2
        assert center[source.labels == 1].mean() > 0.7


@pytest.mark.parametrize("size", [64, 128, 256])
def test_digits_scale_with_the_scene(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "DIGITS_PER_SCENE", (1, 1))
    only_glyph(monkeypatch, np.ones((8, 8)), label=0)
    data = Digits(size=size, scenes=40)
    sides = np.array([np.sqrt(np.count_nonzero(data.read(i).mask)) for i in range(40)]) / size
    assert 0.19 < sides.min() < 0.25
    assert 0.38 < sides.max() < 0.46


def test_scenes_hold_three_to_six_digits_that_stay_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[digits._Scene] = []

    class Spy(digits._Scene):
        def __init__(self, image: digits.FloatArray) -> None:
            super().__init__(image)
            made.append(self)

    monkeypatch.setattr(digits, "_Scene", Spy)
    data = Digits(scenes=150)
    for index in range(len(data)):
        data.read(index)
    counts = [len(scene._visible) for scene in made]
    assert set(counts) == {3, 4, 5, 6}
    overlaps = 0
    for scene in made:
        pixels = np.bincount(scene._owner.ravel(), minlength=1)[1:]
        assert pixels.tolist() == scene._visible.tolist()
        areas = scene._needed / digits.MIN_VISIBLE
        assert np.all(pixels >= digits.MIN_VISIBLE * areas)
        overlaps += int(np.count_nonzero(pixels < areas - 0.5))
    assert overlaps > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"no split 'test'.*allowed: train, val"),
        ({"size": 31}, r"size is 31; .*>= 32"),
        ({"size": "128"}, r"size is '128'"),
        ({"scenes": -1}, r"scenes is -1"),
        ({"seed": -1}, r"seed is -1"),
    ],
)
def test_wrong_options_are_user_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Digits(**options)


@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError):
        Digits(scenes=3).read(index)


def test_missing_scikit_learn_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._load.cache_clear()
    digits.material.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'aicsd\[digits\]'"):
        Digits()
