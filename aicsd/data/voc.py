"""PASCAL VOC 2012, alone or with SBD: ``VOCdevkit/VOC2012`` (Everingham et al., 2015).

21 classes; 255 (void, the outlines) is ignored. The splits are the lists in
``ImageSets/Segmentation``, and ``trainaug``: VOC train and all of SBD (Hariharan et al., 2011)
without VOC val, 10582 images. SBD's masks come as PNGs in ``SegmentationClassAug`` or as the
``.mat`` files of its release; where VOC has a mask of its own, that is the one which counts.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
from aicsd.data.sbd_file import read_sbd_mask
from aicsd.errors import UserError
from aicsd.files import at_home
from aicsd.images import Color, IntArray, read_values


def voc_color(class_id: int) -> Color:
    """VOC's colour: the bits of the id go in turn to the top bits of red, green and blue."""
    red = green = blue = 0
    for level in range(7, -1, -1):
        red |= (class_id & 1) << level
        green |= (class_id >> 1 & 1) << level
        blue |= (class_id >> 2 & 1) << level
        class_id >>= 3
    return red, green, blue


NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
CLASSES = Classes(NAMES, tuple(voc_color(class_id) for class_id in range(len(NAMES))))
COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582, "test": 1456}
"""Images of the splits."""
SBD_COUNT = 11355


def _stored_ids(path: Path, lossy: bool) -> IntArray:
    return read_sbd_mask(path) if path.suffix == ".mat" else read_values(path, lossy)


READ_MASK = IdMasks(len(NAMES), read=_stored_ids)
"""Reads the PNGs of VOC and the files of SBD's release."""


class Devkit(NamedTuple):
    """The folder ``VOC2012``."""

    path: Path

    def image(self, name: str) -> Path:
        return self.path / "JPEGImages" / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.path / "SegmentationClass" / f"{name}.png"

    def list_path(self, split: str) -> Path:
        return self.path / "ImageSets" / "Segmentation" / f"{split}.txt"

    def ids(self, split: str) -> list[str]:
        return read_ids(self.list_path(split))


class SBD(NamedTuple):
    """The folder ``dataset`` of SBD's release."""

    path: Path

    def pair(self, name: str) -> Pair:
        return Pair(self.path / "img" / f"{name}.jpg", self.path / "cls" / f"{name}.mat")

    def ids(self) -> list[str]:
        return [name for part in ("train", "val") for name in read_ids(self.path / f"{part}.txt")]


def open_voc(root: Path, split: str, sbd: str | None = None) -> FileDataset:
    """One split below ``root``.

    Args:
        root: holds ``VOCdevkit``, or is it, or is ``VOC2012``.
        split: train, val, trainval, trainaug, or the name of another list.
        sbd: for trainaug, the folder of SBD's release where its PNG form is not at hand.

    Raises:
        MasksWithheldError: test, whose masks are not public.
        UserError: a folder or list that is not there.
    """
    devkit = find_devkit(root)
    notes = []
    if split == "trainaug":
        pairs = _augmented_pairs(devkit, sbd)
        shared = {pair.image.stem for pair in pairs} & set(devkit.ids("val"))
        if shared:
            notes.append(f"{len(shared)} images are of the split val too, such as {min(shared)}")
    else:
        pairs = [Pair(devkit.image(name), devkit.mask(name)) for name in devkit.ids(split)]
        if split == "test" and not any(pair.mask and pair.mask.is_file() for pair in pairs):
            raise MasksWithheldError(
                "the masks of VOC test are not public: use train or val, or send predictions to "
                "the VOC server"
            )
        require_folder(devkit.path / "SegmentationClass")
    return FileDataset(pairs, CLASSES, READ_MASK, official_count=COUNTS.get(split), notes=notes)


def voc_images(root: Path, split: str, sbd: str | None = None) -> list[Path]:
    """Images of one split, which needs no masks unless it is trainaug."""
    devkit = find_devkit(root)
    if split == "trainaug":
        return [pair.image for pair in _augmented_pairs(devkit, sbd)]
    return [devkit.image(name) for name in devkit.ids(split)]


def open_sbd(root: Path) -> FileDataset:
    """All of SBD, train and val, without VOC."""
    sbd = find_sbd(root)
    return FileDataset(map(sbd.pair, sbd.ids()), CLASSES, READ_MASK, official_count=SBD_COUNT)


def find_devkit(root: Path) -> Devkit:
    """The folder ``VOC2012`` in or at ``root``."""
    for place in _places(root):
        if (place / "JPEGImages").is_dir():
            return Devkit(place)
    raise LayoutError(f"no folder JPEGImages in {root}, VOC2012 or VOCdevkit/VOC2012 there")


def _places(root: Path) -> tuple[Path, ...]:
    return root / "VOCdevkit" / "VOC2012", root / "VOC2012", root


def find_sbd(root: Path) -> SBD:
    """The folder ``dataset`` of SBD's release in or at ``root``."""
    for place in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        if (place / "cls").is_dir():
            return SBD(place)
    raise UserError(
        f"no SBD in {root}: no folder cls there, in dataset or in benchmark_RELEASE/dataset "
        "(aicsd data prepare sbd fetches it)"
    )


def read_ids(path: Path) -> list[str]:
    """Image ids of a list: the first word of every line, each id once.

    A word may be a path such as ``/JPEGImages/2007_000032.jpg``, as in some lists of trainaug.
    """
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt")))
        raise LayoutError(f"no list {path} (lists there: {there or 'none'})")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of image ids: {error}") from error
    words = (line.split()[0] for line in lines if line.strip())
    ids = list(dict.fromkeys(PurePosixPath(word).stem for word in words))
    if not ids:
        raise UserError(f"{path} lists no image")
    return ids


def _augmented_pairs(devkit: Devkit, sbd: str | None) -> list[Pair]:
    own = {path.stem for path in (devkit.path / "SegmentationClass").glob("*.png")}
    if sbd is not None:
        return _pairs_with_release(devkit, find_sbd(Path(at_home(str(sbd)))), own)
    masks = devkit.path / "SegmentationClassAug"
    if not masks.is_dir():
        raise UserError(
            f"split trainaug needs SBD: put its PNGs into {masks}, or give data.options.sbd, the "
            "folder of its release (aicsd data prepare sbd fetches it)"
        )
    if devkit.list_path("trainaug").is_file():
        names = devkit.ids("trainaug")
    else:
        names = _augmented_ids(devkit, [path.stem for path in masks.glob("*.png")])
    return [
        Pair(devkit.image(name), devkit.mask(name) if name in own else masks / f"{name}.png")
        for name in names
    ]


def _pairs_with_release(devkit: Devkit, sbd: SBD, own: set[str]) -> list[Pair]:
    images = {path.stem for path in (devkit.path / "JPEGImages").glob("*.jpg")}
    pairs = []
    for name in _augmented_ids(devkit, sbd.ids()):
        pair = sbd.pair(name)
        if name in images or not pair.image.is_file():
            pair = pair._replace(image=devkit.image(name))
        pairs.append(pair._replace(mask=devkit.mask(name)) if name in own else pair)
    return pairs


def _augmented_ids(devkit: Devkit, more: list[str]) -> list[str]:
    return sorted({*devkit.ids("train"), *more} - set(devkit.ids("val")))


def _place(image: Path, split: str) -> str:
    # comp6: trained on any data; comp5 is for VOC's own alone
    return f"results/VOC2012/Segmentation/comp6_{split}_cls/{image.stem}.png"


DOWNLOAD = Download(
    (
        Archive(
            "VOCtrainval_11-May-2012.tar",
            "VOCdevkit/VOC2012",
            ("VOCdevkit/VOC2012", "VOC2012", "JPEGImages"),
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
    lambda root: {split: open_voc(root, split) for split in ("train", "val")},
    "--data.name voc --data.root {root}",
)
SBD_DOWNLOAD = Download(
    (
        Archive(
            "benchmark.tgz",
            "benchmark_RELEASE/dataset",
            ("benchmark_RELEASE/dataset", "dataset", "cls"),
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
            "semantic_contours/benchmark.tgz",
            "82b4d87ceb2ed10f6038a1cba92111cb",
        ),
    ),
    lambda root: {"train and val": open_sbd(root)},
    "--data.name voc --data.root VOC_ROOT --data.train_split trainaug --data.options.sbd {root}",
)
VOC = DatasetEntry(
    open_voc,
    "ROOT/VOCdevkit/VOC2012 (or ROOT/VOC2012, or ROOT itself) with JPEGImages/*.jpg, "
    "SegmentationClass/*.png and ImageSets/Segmentation/{train,val,trainval,test}.txt",
    voc_images,
    found=lambda root: any((place / "JPEGImages").is_dir() for place in _places(root)),
    classes=CLASSES,
    counts=COUNTS,
    usual_size=(500, 375),
    downloads={"voc": DOWNLOAD, "sbd": SBD_DOWNLOAD},
    server=Server(tuple(range(len(NAMES))), CLASSES.palette, (".tgz", ".tar.gz"), _place),
)
