"""Scenes of real handwritten digits on real photos, made on the fly: nothing to download.

The digits (UCI optdigits, 1797 of 8x8) and the two photos come with scikit-learn. Training and
validation share neither a digit image nor a photo pixel.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from aicsd.data.entry import DatasetEntry
from aicsd.data.protocol import Classes, Sample
from aicsd.errors import UserError, suggest
from aicsd.extras import require
from aicsd.images import UInt8Array

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# the colours of Okabe and Ito, which the colour-blind can tell apart, and white, grey and wine
CLASSES = Classes(
    names=("background", *"0123456789"),
    palette=(
        (0, 0, 0),
        (255, 255, 255),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (128, 128, 128),
        (204, 121, 167),
        (136, 34, 85),
    ),
)
SCENES = {"train": 400, "val": 100}
"""The splits and how many scenes each has by default."""

DIGITS_PER_SCENE = (3, 6)
DIGIT_SIDE = (0.22, 0.42)
"""Smallest and largest height of a digit, as parts of the scene's side: 28 to 54 of 128."""
CROP_SIDE = (90, 200)
"""Smallest and largest side of the photo crop, in photo pixels."""
VAL_DIGITS = 0.2
TRAIN_WIDTH = 2 / 3
SHARPENING = 0.8
INK_LEVEL = 0.45
"""Interpolated grey level where the outline of a digit runs."""
OPACITY = (0.85, 1.0)
DIMMING = 0.5
"""Brightness of the photos: a short training learns light digits on a darker ground."""
MIN_CONTRAST = 90.0
"""Wanted difference in lightness (0 to 255) between a digit and what is around and below it."""
MIN_VISIBLE = 0.95
"""The part of a digit that later ones never cover."""
PLACE_TRIES = 12
COLOR_TRIES = 16
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


class Material(NamedTuple):
    """Sources of the scenes of one split."""

    rows: IntArray
    """(N,) rows of the digits in scikit-learn's data, sorted."""
    glyphs: FloatArray
    """(N, 8, 8) ink: about 0 = paper, about 1 = stroke; sharpening overshoots both."""
    labels: IntArray
    """(N,) digits 0 to 9."""
    photos: tuple[UInt8Array, ...]
    """(H, W, 3) RGB regions: views of the photos."""


class Digits:
    """A split of the scenes, each composed when it is read.

    Args:
        split: "train" or "val".
        size: height and width of a scene in pixels, at least 32.
        scenes: number of scenes; 0 = 400 for train, 100 for val.
        seed: another seed gives other scenes from the same digits and photos.

    Raises:
        UserError: a value out of range, or scikit-learn is not installed.
    """

    classes = CLASSES

    def __init__(
        self, split: str = "train", size: int = 128, scenes: int = 0, seed: int = 0
    ) -> None:
        if split not in SCENES:
            raise UserError(f"dataset 'digits' has no split {split!r}{suggest(split, SCENES)}")
        for key, value, least in (("size", size, 32), ("scenes", scenes, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"dataset 'digits': {key} is {value!r}; it must be a whole number >= {least}"
                )
        # here, so that a missing package shows at once and forked workers inherit the data
        material(split)
        self.split, self._side, self.seed = split, size, seed
        self.names = [f"{split}_{index:04d}" for index in range(scenes or SCENES[split])]
        self._scenes: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> range:
        """Indices of all scenes."""
        return range(len(self))

    def size(self, index: int) -> tuple[int, int]:  # noqa: ARG002
        """(H, W) of a scene."""
        return self._side, self._side

    def read(self, index: int) -> Sample:
        """Scene ``index``: (size, size, 3) RGB and (size, size) ids 0 to 10, none ignored.

        A scene is made once and kept; its arrays are read-only.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"digits {self.split} has {len(self)} scenes; there is no {index}")
        if index not in self._scenes:
            self._scenes[index] = self._make(index)
        return self._scenes[index]

    def _make(self, index: int) -> Sample:
        source = material(self.split)
        rng = scene_rng(self.seed, self.split, index)
        scene = _Scene(background(rng, source.photos, self._side))
        for _ in range(rng.integers(*DIGITS_PER_SCENE, endpoint=True)):
            pick = rng.integers(len(source.labels))
            scene.add(rng, source.glyphs[pick], int(source.labels[pick]) + 1)
        sample = Sample(np.rint(scene.image).astype(np.uint8), scene.mask)
        for array in (sample.image, sample.mask):
            array.flags.writeable = False
        return sample


class _Scene:
    """A picture in the making: digits are added one over the other."""

    def __init__(self, image: FloatArray) -> None:
        self.image = image
        self.mask = np.zeros(image.shape[:2], np.uint8)
        # which digit of the scene a pixel shows (0 = none), and per digit its colour, how many
        # pixels show it and how many must stay so
        self._owner = np.zeros(image.shape[:2], np.int64)
        self._colors = np.zeros((0, 3), np.float32)
        self._visible = np.zeros(0, np.int64)
        self._needed = np.zeros(0, np.float64)

    def add(self, rng: np.random.Generator, glyph: FloatArray, class_id: int) -> None:
        """Draw ``glyph`` (8, 8) where it fits; leave it out of a scene that is too full."""
        alpha = _warp(rng, glyph, self.image.shape[0])
        ink = alpha > 0.5
        place = self._find_place(rng, ink)
        if place is None:
            return
        window, covered = place
        below = self.image[window]
        color = _pick_color(rng, below, self._colors[covered > 0])
        below += (alpha * rng.uniform(*OPACITY))[..., None].astype(np.float32) * (color - below)
        self.mask[window][ink] = class_id
        self._colors = np.concatenate([self._colors, color[None]])
        self._owner[window][ink] = len(self._colors)
        area = np.count_nonzero(ink)
        self._visible = np.append(self._visible - covered, area)
        self._needed = np.append(self._needed, MIN_VISIBLE * area)

    def _find_place(
        self, rng: np.random.Generator, ink: npt.NDArray[np.bool_]
    ) -> tuple[tuple[slice, slice], IntArray] | None:
        """A random window and the pixels it takes from each digit, or None if it hides one."""
        (height, width), side = ink.shape, self.image.shape[0]
        for _ in range(PLACE_TRIES):
            top, left = rng.integers((side - height + 1, side - width + 1))
            window = slice(top, top + height), slice(left, left + width)
            owners = self._owner[window][ink]
            covered = np.bincount(owners, minlength=len(self._visible) + 1)[1:]
            if np.all(self._visible - covered >= self._needed):
                return window, covered
        return None


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene, which depend on nothing else."""
    return np.random.default_rng((seed, list(SCENES).index(split), index))


def background(rng: np.random.Generator, photos: tuple[UInt8Array, ...], size: int) -> FloatArray:
    """(size, size, 3) RGB in 0..255: a random square of a photo, scaled and maybe mirrored."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(*CROP_SIDE, endpoint=True))
    top, left = rng.integers((photo.shape[0] - side + 1, photo.shape[1] - side + 1))
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    scaled = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=method)
    return scaled.astype(np.float32) * DIMMING


def _warp(rng: np.random.Generator, glyph: FloatArray, size: int) -> FloatArray:
    """(h, w) alpha in 0..1 of the enlarged, turned and slanted glyph, cut to its outline."""
    side = size * rng.uniform(*DIGIT_SIDE)
    turn, slant = rng.uniform(-0.2, 0.2, 2)
    narrow = rng.uniform(0.85, 1.1)
    scale = side / glyph.shape[0]
    cos, sin = math.cos(turn), math.sin(turn)
    linear = scale * np.array(((cos, -sin), (sin, cos))) @ np.array(((narrow, slant), (0.0, 1.0)))
    # the box of a square with side 1 after a turn and slant of 0.2 rad is below 1.6 wide and high
    box = math.ceil(1.6 * side)
    shift = (box - 1) / 2 - linear @ np.full(2, (glyph.shape[0] - 1) / 2)
    matrix = np.column_stack((linear, shift))
    level = cv2.warpAffine(glyph, matrix, (box, box), flags=cv2.INTER_CUBIC)
    # an edge of about 1.5 pixels at any scale: sharp, but not a staircase
    alpha: FloatArray = np.clip(0.5 + (level - INK_LEVEL) * (scale / 1.5), 0, 1).astype(np.float32)
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    return alpha[top : top + height, left : left + width]


def _pick_color(rng: np.random.Generator, below: FloatArray, covered: FloatArray) -> FloatArray:
    """(3,) RGB in 0..255 that stands out from ``below`` (h, w, 3) and the digits it covers (M, 3).

    Only lightness counts: without it a digit is hard to see, for the colour-blind most of all.
    """
    around = np.sort(below[::2, ::2].reshape(-1, 3) @ LUMA)
    colors = rng.uniform(40, 255, (COLOR_TRIES, 3)).astype(np.float32)
    lightness = colors @ LUMA
    # lighter than the light parts of the photo: the mean of a pattern may be far from them
    contrast = lightness - around[-1 - len(around) // 6]
    for other in covered @ LUMA:
        contrast = np.minimum(contrast, 2 * np.abs(lightness - other))
    enough = contrast >= MIN_CONTRAST
    # the first that will do, not the best: else all digits would be black or white
    color: FloatArray = colors[np.argmax(enough) if enough.any() else np.argmax(contrast)]
    return color


@functools.cache
def material(split: str) -> Material:
    """Digits and photo regions of a split, read once per process."""
    glyphs, labels, photos = _load()
    rows = split_rows(labels, split)
    regions = tuple(split_region(photo, split) for photo in photos)
    return Material(rows, glyphs[rows], labels[rows], regions)


def split_rows(labels: IntArray, split: str) -> IntArray:
    """Sorted rows of a split: the last fifth of each class is for validation.

    Not every fifth, because neighbours in the file are often by one writer.
    """
    chosen = []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        cut = round(len(rows) * (1 - VAL_DIGITS))
        chosen.append(rows[:cut] if split == "train" else rows[cut:])
    return np.sort(np.concatenate(chosen))


def split_region(photo: UInt8Array, split: str) -> UInt8Array:
    """The left two thirds of a photo (H, W, 3) for training, the rest for validation."""
    cut = round(photo.shape[1] * TRAIN_WIDTH)
    return photo[:, :cut] if split == "train" else photo[:, cut:]


def _sharpen(glyph: FloatArray) -> FloatArray:
    """(8, 8) with deeper holes and fuller faint strokes, which one level could not both keep."""
    blurred = cv2.GaussianBlur(glyph, (0, 0), 1.0, borderType=cv2.BORDER_CONSTANT)
    return (glyph + SHARPENING * (glyph - blurred)).astype(np.float32)


@functools.cache
def _load() -> tuple[FloatArray, IntArray, list[UInt8Array]]:
    """All glyphs (1797, 8, 8), sharpened, their digits (1797,), and both photos (427, 640, 3)."""
    datasets = require("sklearn.datasets", "digits", "dataset 'digits' needs scikit-learn")
    data = datasets.load_digits()
    glyphs = [_sharpen(image) for image in (data.images / 16).astype(np.float32)]
    return np.stack(glyphs), data.target.astype(np.int64), datasets.load_sample_images().images


DIGITS = DatasetEntry(Digits, classes=CLASSES, counts=SCENES, usual_size=(128, 128))
