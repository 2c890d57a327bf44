"""A tiny root of every dataset: two training and one validation image, masks of known ids."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from conftest import write_folder
from PIL import Image

HEIGHT, WIDTH = 24, 32
SPLITS = {"train": ("a", "b"), "val": ("c",)}


class Tree(NamedTuple):
    """Settings that open a dataset in a root."""

    root: str | None
    options: dict[str, Any]
    unlabelled: tuple[str, ...] = ()
    """Splits without masks of which the images can be listed."""
    has_labels: bool = True


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask_of(stored: tuple[int, ...]) -> Image.Image:
    """Stripes of the stored ids."""
    return Image.fromarray(np.resize(np.array(stored, np.uint8), (HEIGHT, WIDTH)))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def digits(root: Path) -> Tree:
    return Tree(None, {"size": 32, "scenes": 3})


def voc(root: Path) -> Tree:
    place = root / "VOC2012"
    lists = place / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {**SPLITS, "test": ("t",)}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save(picture(ord(name)), place / "JPEGImages" / f"{name}.jpg")
            if split != "test":
                save(mask_of((0, 15, 255)), place / "SegmentationClass" / f"{name}.png")
    return Tree(str(root), {}, ("test",))


def camvid(root: Path) -> Tree:
    for split, names in SPLITS.items():
        for name in names:
            save(picture(ord(name)), root / split / f"{name}.png")
            save(mask_of((3, 8, 11)), root / f"{split}annot" / f"{name}.png")
    return Tree(str(root), {})


def cityscapes(root: Path) -> Tree:
    for split, names in {**SPLITS, "test": ("t",)}.items():
        for name in names:
            image = root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png"
            save(picture(ord(name)), image)
            if split != "test":
                mask = root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png"
                save(mask_of((7, 26, 0)), mask)
    return Tree(str(root), {}, ("test",))


def folder(root: Path) -> Tree:
    write_folder(root, {"train": 2, "val": 1})
    save(picture(0), root / "images" / "unlabelled" / "u.png")
    return Tree(str(root), {}, ("unlabelled",))


def shards(root: Path) -> Tree:
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ndisc\nbar\n")
    for split, names in SPLITS.items():
        for number, name in enumerate(names):
            with tarfile.open(root / f"{split}-{number:06}.tar", "w") as tar:
                for end, image in (("png", picture(ord(name))), ("mask.png", mask_of((0, 2, 255)))):
                    buffer = io.BytesIO()
                    image.save(buffer, "PNG")
                    entry = tarfile.TarInfo(f"{name}.{end}")
                    entry.size = buffer.tell()
                    buffer.seek(0)
                    tar.addfile(entry, buffer)
    return Tree(str(root), {})


def photos(root: Path) -> Tree:
    for number in range(3):
        save(picture(number), root / f"{number}.png")
    (root / "classes.txt").write_text("road\nsky\n")
    return Tree(str(root), {}, has_labels=False)


TREES: dict[str, Callable[[Path], Tree]] = {
    "photos": photos,
    "digits": digits, "voc": voc, "camvid": camvid, "cityscapes": cityscapes, "folder": folder,
    "shards": shards,
}  # fmt: skip


def pack(root: Path, place: Path, per_tar: int = 3, mask: str = "mask.png") -> Path:
    """A folder dataset as shards; the masks of a sample before its image in every second one."""
    place.mkdir()
    (place / "classes.txt").write_bytes((root / "classes.txt").read_bytes())
    for split in ("train", "val"):
        images = sorted((root / "images" / split).iterdir())
        for start in range(0, len(images), per_tar):
            with tarfile.open(place / f"{split}-{start // per_tar:06}.tar", "w") as tar:
                for number, image in enumerate(images[start : start + per_tar]):
                    label = root / "masks" / split / image.name
                    both = [(image, "png"), (label, mask)]
                    for path, end in reversed(both) if number % 2 else both:
                        tar.add(path, f"photos/{image.stem}.{end}")
                    add_member(tar, f"photos/{image.stem}.json", b"{}")
                    add_member(tar, f"photos/._{image.stem}.png", b"x")
    return place


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
