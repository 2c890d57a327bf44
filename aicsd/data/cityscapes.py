"""Cityscapes, fine annotations: ``leftImg8bit`` and ``gtFine`` (Cordts et al., arXiv 1604.01685).

2975, 500 and 1525 images of 2048x1024. The masks ``*_gtFine_labelIds.png`` hold 34 ids, of which
19 are classes; the rest is ignored.
"""

from __future__ import annotations

from pathlib import Path

from aicsd.data.entry import Archive, DatasetEntry, Download, Server
from aicsd.data.file_dataset import (
    FileDataset,
    LayoutError,
    MasksWithheldError,
    Pair,
    require_folder,
)
from aicsd.data.masks import IdMasks
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX

CLASSES = Classes(
    names=(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    palette=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Class id (the "train id") -> the id in mask files and in what the benchmark server expects."""
COUNTS = {"train": 2975, "val": 500, "test": 1525}
"""Images of the splits."""
IMAGE_END = "_leftImg8bit.png"
MASK_END = "_gtFine_labelIds.png"


def open_cityscapes(root: Path, split: str) -> FileDataset:
    """One split below ``root``.

    Raises:
        MasksWithheldError: test, whose published masks are empty.
        UserError: a folder that is not there, or two images of one name.
    """
    if split == "test":
        raise MasksWithheldError(
            "the masks of Cityscapes test are not public: use train or val, or send predictions "
            "to the benchmark server"
        )
    images, masks = _image_folder(root) / split, require_folder(root / "gtFine" / split)
    found = {path.relative_to(images) for path in cityscapes_images(root, split)}
    # a mask without its image is as much a broken pair as an image without its mask
    found |= {
        _renamed(path.relative_to(masks), MASK_END, IMAGE_END)
        for path in masks.rglob(f"*{MASK_END}")
    }
    pairs = [
        Pair(images / image, masks / _renamed(image, IMAGE_END, MASK_END))
        for image in sorted(found)
    ]
    ids = {label: class_id for class_id, label in enumerate(LABEL_IDS)}
    read_mask = IdMasks(len(LABEL_IDS), ids, other=IGNORE_INDEX)
    return FileDataset(pairs, CLASSES, read_mask, official_count=COUNTS.get(split))


def cityscapes_images(root: Path, split: str) -> list[Path]:
    """Images of one split, sorted by city and name; needs no masks."""
    folder = require_folder(_image_folder(root) / split)
    found = sorted(folder.rglob(f"*{IMAGE_END}"))
    if not found:
        raise LayoutError(f"no images *{IMAGE_END} in the folders of {folder}")
    by_name: dict[str, Path] = {}
    for path in found:
        if by_name.setdefault(path.name, path) != path:
            raise UserError(
                f"{by_name[path.name]} and {path} have the same name; the images of a split need "
                "different ones"
            )
    return found


def _image_folder(root: Path) -> Path:
    for place in (root / "leftImg8bit", root / "images"):
        if place.is_dir():
            return place
    raise LayoutError(f"no folder {root / 'leftImg8bit'} (or images there)")


def _renamed(path: Path, end: str, new_end: str) -> Path:
    return path.with_name(path.name.removesuffix(end) + new_end)


def _place(image: Path, split: str) -> str:  # noqa: ARG001
    return f"{image.name.removesuffix(IMAGE_END)}_pred_labelIds.png"


DOWNLOAD = Download(
    (
        Archive("leftImg8bit_trainvaltest.zip", "leftImg8bit", ("leftImg8bit", "images")),
        Archive("gtFine_trainvaltest.zip", "gtFine", ("gtFine",)),
    ),
    lambda root: {split: open_cityscapes(root, split) for split in ("train", "val")},
    "--data.name cityscapes --data.root {root}",
    by_hand="""Cityscapes is given to registered users only; nothing was downloaded. To get it:
1. Register at https://www.cityscapes-dataset.com/ and accept its terms.
2. Put {archives} into {root}: from its download page, or with
   pip install cityscapesscripts && csDownload -d {root} {names}
3. Run this command again: it unpacks them to leftImg8bit and gtFine in {root} and checks all.""",
)
CITYSCAPES = DatasetEntry(
    open_cityscapes,
    "ROOT/leftImg8bit (or ROOT/images)/{train,val,test}/<city>/*_leftImg8bit.png and "
    "ROOT/gtFine/{train,val}/<city>/*_gtFine_labelIds.png",
    cityscapes_images,
    found=lambda root: (root / "gtFine").is_dir(),
    classes=CLASSES,
    counts=COUNTS,
    usual_size=(2048, 1024),
    downloads={"cityscapes": DOWNLOAD},
    server=Server(LABEL_IDS, palette=None, suffixes=(".zip",), place=_place),
)
