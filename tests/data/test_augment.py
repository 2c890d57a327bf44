"""Augmentation: image and labels stay together, padding is marked, every switch switches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicsd.data.augment import Crop, Padding, augment
from aicsd.data.protocol import Sample
from aicsd.data.settings import AugmentConfig
from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX

COLORS = np.array([(20, 200, 90), (250, 30, 10), (90, 10, 240), (10, 120, 130)], np.uint8)
PLAIN = AugmentConfig(crop=32, scale_min=1, scale_max=1, flip=0, blur=0, jitter=0)


def blocks(height: int, width: int, seed: int = 0, side: int = 12) -> Sample:
    """Blocks of four labels, painted in the colour of their label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (height // side + 1, width // side + 1), dtype=np.uint8)
    mask = coarse.repeat(side, 0).repeat(side, 1)[:height, :width]
    return Sample(COLORS[mask], np.ascontiguousarray(mask))


def noise(height: int, width: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 4, (height, width), dtype=np.uint8))


def run(sample: Sample, config: AugmentConfig, seed: int = 0) -> Crop:
    return augment(sample, np.random.default_rng(seed), config)


def arrays(sample: Crop | Sample) -> list[np.ndarray]:
    more = [sample.valid] if isinstance(sample, Crop) else []
    return [sample.image, sample.mask, *more]


def same(a: Crop | Sample, b: Crop | Sample) -> bool:
    assert a.maps is b.maps is None
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))
configs = st.builds(
    AugmentConfig,
    crop=st.integers(16, 48),
    scale_min=st.floats(0.3, 1.0),
    scale_max=st.floats(1.0, 3.0),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    blur=st.sampled_from([0.0, 1.0]),
    jitter=st.sampled_from([0.0, 0.7]),
)


@settings(max_examples=150, deadline=None)
@given(sizes, configs, st.integers(0, 10**6))
def test_form(size: tuple[int, int], config: AugmentConfig, seed: int) -> None:
    crop = run(noise(*size), config, seed)
    side = config.crop
    assert crop.image.shape == (side, side, 3)
    assert crop.mask.shape == crop.valid.shape == (side, side)
    assert crop.image.dtype == crop.mask.dtype == np.uint8
    assert crop.valid.dtype == bool
    assert (crop.mask[~crop.valid] == IGNORE_INDEX).all()
    assert (crop.mask[crop.valid] < 4).all()
    rows, columns = crop.valid.max(axis=1), crop.valid.max(axis=0)
    assert np.array_equal(crop.valid, rows[:, None] & columns[None])
    assert rows[: rows.sum()].all()
    assert columns[: columns.sum()].all() or (config.flip and columns[-columns.sum() :].all())
    if not config.blur and not config.jitter:
        assert (crop.image[~crop.valid] == Padding().color).all()


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.3, 3.0), st.integers(0, 100))
def test_padding_is_where_the_scaled_image_ends(
    size: tuple[int, int], scale: float, seed: int
) -> None:
    crop = run(noise(*size), replace(PLAIN, scale_min=scale, scale_max=scale), seed)
    for length, axis in ((size[0], 1), (size[1], 0)):
        expected = min(max(length * scale, 1), 32)
        assert abs(crop.valid.any(axis=axis).sum() - expected) <= 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("size", [(96, 96), (30, 96), (96, 30), (24, 24)])
def test_image_and_labels_stay_together(size: tuple[int, int], scale: float, flip: float) -> None:
    config = replace(PLAIN, scale_min=scale, scale_max=scale, flip=flip)
    compared = 0
    for seed in range(5):
        crop = run(blocks(*size, seed=seed), config, seed)
        # away from borders, where interpolation mixes colours
        low = cv2.erode(crop.mask, np.ones((3, 3)), borderType=cv2.BORDER_REPLICATE)
        high = cv2.dilate(crop.mask, np.ones((3, 3)), borderType=cv2.BORDER_REPLICATE)
        clear = (low == high) & crop.valid
        expected = COLORS[crop.mask[clear]].astype(int)
        assert np.abs(crop.image[clear] - expected).max() <= 1
        compared += clear.sum()
    assert compared > 200


@pytest.mark.parametrize("scale", [0.4, 0.73, 1.3, 2.6])
def test_scaling_invents_no_labels(scale: float) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 7, 200], np.uint8), (60, 60))
    sample = Sample(np.zeros((60, 60, 3), np.uint8), mask)
    crop = run(sample, replace(PLAIN, scale_min=scale, scale_max=scale))
    assert set(np.unique(crop.mask[crop.valid])) == {0, 7, 200}


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_scale_is_the_factor_of_lengths(scale: float) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[40:56, 36:60] = 1
    config = replace(PLAIN, crop=192, scale_min=scale, scale_max=scale)
    crop = run(Sample(COLORS[mask], mask), config)
    found = crop.mask == 1
    assert found.any(axis=1).sum() == 16 * scale
    assert found.any(axis=0).sum() == 24 * scale
    assert crop.valid.sum() == (96 * scale) ** 2


def test_all_off_copies_the_image() -> None:
    sample = noise(32, 32)
    crop = run(sample, PLAIN)
    assert np.array_equal(crop.image, sample.image)
    assert np.array_equal(crop.mask, sample.mask)
    assert crop.valid.all()


def test_all_off_cuts_a_window_from_a_larger_image() -> None:
    sample = noise(50, 70)
    corners: Counter[tuple[int, int]] = Counter()
    for seed in range(300):
        crop = run(sample, PLAIN, seed)
        (match,) = [
            (top, left)
            for top in range(19)
            for left in range(39)
            if np.array_equal(sample.image[top, left : left + 32], crop.image[0])
        ]
        window = np.s_[match[0] : match[0] + 32, match[1] : match[1] + 32]
        assert np.array_equal(crop.image, sample.image[window])
        assert np.array_equal(crop.mask, sample.mask[window])
        corners[match] += 1
    assert {top for top, _ in corners} == set(range(19))
    assert {left for _, left in corners} == set(range(39))


def test_a_small_image_is_kept_whole_and_padded() -> None:
    sample = noise(20, 25)
    crop = run(sample, PLAIN)
    assert np.array_equal(crop.image[:20, :25], sample.image)
    assert np.array_equal(crop.mask[:20, :25], sample.mask)
    assert crop.valid.sum() == 20 * 25
    assert (crop.image[~crop.valid] == Padding().color).all()


def test_unlabelled_pixels_are_inside() -> None:
    sample = noise(32, 32)
    sample.mask[:, :5] = IGNORE_INDEX
    crop = run(sample, PLAIN)
    assert crop.valid.all()
    assert (crop.mask[:, :5] == IGNORE_INDEX).all()


@pytest.mark.parametrize("size", [(60, 60), (20, 25)])
def test_flip_mirrors_image_labels_and_padding(size: tuple[int, int]) -> None:
    for seed in range(5):
        plain = run(noise(*size), PLAIN, seed)
        flipped = run(noise(*size), replace(PLAIN, flip=1.0), seed)
        assert same(flipped, Crop(plain.image[:, ::-1], plain.mask[:, ::-1], plain.valid[:, ::-1]))


def test_flip_happens_with_its_probability() -> None:
    sample = noise(32, 32)
    config = replace(PLAIN, flip=0.3)
    flips = sum(not np.array_equal(run(sample, config, s).image, sample.image) for s in range(400))
    assert 85 < flips < 155


@pytest.mark.parametrize("name", ["blur", "jitter"])
def test_changes_of_colour_touch_the_image_only(name: str) -> None:
    sample = noise(60, 60)
    changes: dict[str, Any] = {name: 1.0}
    changed = 0
    for seed in range(5):
        plain, other = run(sample, PLAIN, seed), run(sample, replace(PLAIN, **changes), seed)
        assert np.array_equal(plain.mask, other.mask)
        assert np.array_equal(plain.valid, other.valid)
        changed += not np.array_equal(plain.image, other.image)
    assert changed >= 4


def test_blur_smooths_and_keeps_the_mean() -> None:
    sample = noise(32, 32)
    deviations = []
    for seed in range(10):
        blurred = run(sample, replace(PLAIN, blur=1.0), seed).image.astype(float)
        assert blurred.mean() == pytest.approx(sample.image.mean(), abs=2)
        deviations.append(blurred.std())
    assert max(deviations) <= sample.image.std() + 0.5
    assert min(deviations) < 0.6 * sample.image.std()
    assert max(deviations) - min(deviations) > 5


def test_jitter_is_stronger_for_a_larger_strength_and_differs_each_time() -> None:
    sample = blocks(32, 32)
    mean_change = []
    for strength in (0.1, 0.5, 1.0):
        config = replace(PLAIN, jitter=strength)
        images = [run(sample, config, seed).image.astype(int) for seed in range(20)]
        mean_change.append(np.mean([np.abs(image - sample.image).mean() for image in images]))
        assert len({image.tobytes() for image in images}) > 15
    assert mean_change[0] < mean_change[1] < mean_change[2]
    assert 0 < mean_change[0] < 12


def test_jitter_of_grey_pixels_stays_grey() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    sample = Sample(np.stack([levels] * 3, axis=-1), np.zeros((32, 32), np.uint8))
    for seed in range(5):
        image = run(sample, replace(PLAIN, jitter=1.0), seed).image
        assert (image == image[..., :1]).all()


def test_switching_one_off_leaves_the_others_as_they_were() -> None:
    sample = noise(60, 60)
    every = AugmentConfig(crop=32, scale_min=0.5, scale_max=2, flip=0.5, blur=0.5, jitter=0.5)
    for seed in range(8):
        full = run(sample, every, seed)
        for name in ("blur", "jitter"):
            changes: dict[str, Any] = {name: 0.0}
            less = run(sample, replace(every, **changes), seed)
            assert np.array_equal(less.mask, full.mask)
            assert np.array_equal(less.valid, full.valid)
        unflipped = run(sample, replace(every, flip=0.0), seed).mask
        assert np.array_equal(unflipped, full.mask) or np.array_equal(unflipped[:, ::-1], full.mask)


@settings(max_examples=25, deadline=None)
@given(sizes, configs, st.integers(0, 10**6))
def test_the_generator_decides_everything(
    size: tuple[int, int], config: AugmentConfig, seed: int
) -> None:
    sample = noise(*size)
    before = Sample(sample.image.copy(), sample.mask.copy())
    np.random.seed(1)
    first = run(sample, config, seed)
    np.random.seed(2)
    assert same(run(sample, config, seed), first)
    assert same(sample, before)


def test_other_seeds_give_other_crops() -> None:
    sample = noise(90, 90)
    config = AugmentConfig(crop=32)
    assert len({run(sample, config, seed).image.tobytes() for seed in range(30)}) == 30


def test_scales_fill_their_range() -> None:
    sample = noise(64, 64)
    config = replace(PLAIN, crop=256, scale_min=0.5, scale_max=2.0)
    found = [run(sample, config, seed).valid.any(axis=1).sum() / 64 for seed in range(200)]
    assert 0.49 < min(found) < 0.6
    assert 1.9 < max(found) < 2.01
    assert np.mean(found) == pytest.approx(1.25, abs=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"crop": 15},
        {"crop": -1},
        {"scale_min": 0.0},
        {"scale_min": -1.0},
        {"scale_min": 2.0, "scale_max": 1.0},
        {"flip": 1.1},
        {"flip": -0.1},
        {"blur": 2.0},
        {"jitter": -0.5},
        {"jitter": float("nan")},
        {"scale_max": float("nan")},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        AugmentConfig(**change)
