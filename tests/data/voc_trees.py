"""Tiny roots of VOC 2012 and of SBD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from aicsd.data.voc import voc_color

# (width, height): landscape, portrait, odd, one row
SIZES = {"2007_a": (50, 37), "2007_b": (33, 50), "2008_c": (17, 17), "2008_d": (9, 1)}
TRAIN, VAL, TEST = ["2007_a", "2007_b"], ["2008_c", "2008_d"], ["2008_t"]


def mask_of(name: str) -> np.ndarray:
    """Each has another pattern; all have void, and ``2007_b`` a single pixel of the last class."""
    width, height = SIZES.get(name, (20, 10))
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1 + sum(map(ord, name)) % 19
    mask[0, :3] = 255
    if name == "2007_b":
        mask[-1, 0] = 20
    return mask


def write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def write_png(path: Path, mask: np.ndarray) -> None:
    """A palette PNG as VOC has them: the colours are of the palette, the values are the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette([part for class_id in range(256) for part in voc_color(class_id)])
    picture.save(path)


def write_mat(path: Path, mask: np.ndarray) -> None:
    """SBD's struct: boundaries and segmentation of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for row in boundaries:
        row[0] = csc_matrix(mask.shape[:2], dtype=np.float64)
    fields = {
        "Boundaries": boundaries,
        "Segmentation": mask,
        "CategoriesPresent": np.unique(mask[(mask > 0) & (mask < 255)]),
    }
    savemat(path, {"GTcls": fields}, do_compression=True)


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_devkit(root: Path) -> Path:
    """VOC2012 with two images for training, two for validation and one for the test."""
    place = root / "VOCdevkit" / "VOC2012"
    for name, size in SIZES.items():
        write_image(place / "JPEGImages" / f"{name}.jpg", size)
        write_png(place / "SegmentationClass" / f"{name}.png", mask_of(name))
    write_image(place / "JPEGImages" / "2008_t.jpg", (20, 10))
    lists = {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL, "test": TEST}
    for split, names in lists.items():
        write_list(place / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return place


SBD_MASK = np.full((10, 20), 7, np.uint8)
"""Mask of images that only SBD labels; where VOC has a mask too, SBD's holds this value."""


def write_sbd(root: Path, devkit: Path) -> Path:
    """SBD's release: of its five images one is VOC's for training, one VOC's for validation."""
    place = root / "benchmark_RELEASE" / "dataset"
    for name in ("2007_a", "2008_c", "2009_x", "2009_y", "2010_z"):
        size = SIZES.get(name, (20, 10))
        write_image(place / "img" / f"{name}.jpg", size)
        write_mat(place / "cls" / f"{name}.mat", np.full(size[::-1], 7, np.uint8))
        if name in ("2009_x", "2010_z"):
            write_image(devkit / "JPEGImages" / f"{name}.jpg", size)
    write_list(place / "train.txt", ["2009_x", "2008_c", "2007_a"])
    write_list(place / "val.txt", ["2010_z", "2009_y"])
    return root


def add_aug_folder(devkit: Path) -> None:
    for name in ("2007_a", "2007_b", "2008_c", "2009_x", "2009_y", "2010_z"):
        size = SIZES.get(name, (20, 10))
        write_png(devkit / "SegmentationClassAug" / f"{name}.png", np.full(size[::-1], 7, np.uint8))
        if name.startswith(("2009", "2010")):
            write_image(devkit / "JPEGImages" / f"{name}.jpg", size)


def root_of(devkit: Path) -> str:
    return str(devkit.parents[1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
