"""Images and masks in tar files, as WebDataset has them: ``train-000000.tar``, ``val-000000.tar``.

The members of a sample have one name up to its first dot: ``a/0001.jpg``, ``a/0001.mask.png``. The
headers of the tars are read once, when a split is opened; then every sample is read from its place
in its tar, so that the order of the samples, processes, loaders and resuming are those of all other
datasets. Nothing is unpacked. A tar may be on a web server, where its samples are ranges of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from aicsd.data.classes_file import TABLE, find_classes, read_classes
from aicsd.data.entry import DatasetEntry
from aicsd.data.file_dataset import LayoutError
from aicsd.data.masks import IdMasks
from aicsd.data.protocol import Sample, SegDataset
from aicsd.data.shard_index import Member, members_of, open_remote
from aicsd.data.shard_urls import SUFFIX, fetch_shards, listed_tars
from aicsd.data.web_file import WebFile
from aicsd.errors import UserError
from aicsd.images import (
    IMAGE_SUFFIXES,
    IntArray,
    UInt8Array,
    decode_image,
    decode_size,
    decode_values,
)
from aicsd.types import IGNORE_INDEX

PNG = "png"
MASK_ENDS = ("mask.png", "seg.png", "label.png", PNG)
"""Ends of the name of a mask; a png alone is one where the image has another end."""


class Place(NamedTuple):
    """A member of a tar."""

    tar: Path
    """Its file, or where a copy of it would be."""
    name: str
    offset: int
    size: int
    web: WebFile | None = None
    """The tar, if it is on a web server."""

    def read(self) -> bytes:
        """Its content.

        Raises:
            UserError: the tar is not there any more, was cut, or as
                :meth:`aicsd.data.web_file.WebFile.read`.
        """
        if self.web is not None:
            return self.web.read(self.offset, self.size)
        try:
            with self.tar.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(f"{self.tar} cannot be read: {error.strerror or error}") from error
        if len(data) < self.size:
            raise UserError(f"{self} cannot be read: the tar ends before it")
        return data

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"


class ShardDataset(SegDataset):
    """Samples in tar files.

    Args:
        samples: image and mask of every sample; without a mask it has no labels.
        names: names of the samples.
        root: folder with the file of the classes.
        classes: name of that file, where it is another one.

    Raises:
        UserError: no such file, or two samples of one name.
    """

    def __init__(
        self,
        samples: list[tuple[Place, Place | None]],
        names: list[str],
        root: Path,
        classes: str | None = None,
    ) -> None:
        path = find_classes(root, classes)
        if path.name == TABLE:
            raise UserError(f"{path}: masks in shards hold class ids; name them in classes.txt")
        self.samples, self.names = samples, names
        self.classes = read_classes(path)
        self._ids = IdMasks(len(self.classes.names), read=self._values)
        self._masks = {str(mask): mask for _, mask in samples if mask is not None}
        tars = {image.tar for image, _ in samples if image.web is not None}
        self.is_remote = bool(tars)
        self.notes = [f"{len(tars)} tars are read from the web"] if tars else []

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> list[int]:
        return [index for index, (_, mask) in enumerate(self.samples) if mask is not None]

    def read(self, index: int) -> Sample:
        """Decode sample ``index``; a broken or mismatched member is a UserError that names it."""
        place, mask = self.samples[index]
        image = decode_image(place.read(), str(place))
        size = (image.shape[0], image.shape[1])
        if mask is None:
            return Sample(image, np.full(size, IGNORE_INDEX, np.uint8))
        ids: UInt8Array = self._ids(Path(str(mask)))
        if ids.shape != size:
            raise UserError(
                f"{place} is {size[1]}x{size[0]} but its mask {mask} is "
                f"{ids.shape[1]}x{ids.shape[0]}; they must have one size"
            )
        return Sample(image, ids)

    def size(self, index: int) -> tuple[int, int]:
        place = self.samples[index][0]
        return decode_size(place.read(), str(place))

    def _values(self, path: Path, lossy: bool) -> IntArray:
        mask = self._masks[str(path)]
        return decode_values(mask.read(), str(mask), lossy)


def open_shards(
    root: Path, split: str, *, classes: str | None = None, masks: str | None = None
) -> ShardDataset:
    """One split: the tars ``SPLIT.tar`` and ``SPLIT-*.tar``, in the order of their names.

    Args:
        root: folder of the tars, or of ``SPLIT.urls`` with the addresses of those that are not
            there.
        split: start of their names.
        classes: file that names the classes, from ``root``.
        masks: part of a mask's name after its first dot, such as ``seg.png``.

    Raises:
        UserError: no such tar, a damaged one, two samples of one name, or as
            :func:`aicsd.data.shard_index.open_remote`.
    """
    copies = {*root.glob(f"{split}.tar"), *root.glob(f"{split}-*.tar")}
    listed = {path: url for path, url in listed_tars(root, split).items() if path not in copies}
    if not copies and not listed:
        raise LayoutError(f"no {split}.tar, {split}-*.tar or {split}{SUFFIX} in {root}")
    remote = open_remote(listed) if listed else {}
    samples: list[tuple[Place, Place | None]] = []
    names: list[str] = []
    seen: dict[str, Place] = {}
    for tar in sorted(copies | remote.keys()):
        web, found = remote[tar] if tar in remote else (None, members_of(tar))
        for name, members in _grouped(tar, found, web).items():
            image, mask = _pair(tar, name, members, masks)
            if image is None:
                continue
            if name in seen:
                raise UserError(
                    f"{seen[name]} and {image} have the same name, {name!r}; the samples of a "
                    "split need different ones"
                )
            seen[name] = image
            samples.append((image, mask))
            names.append(name)
    if not samples:
        raise LayoutError(f"no images in {min(copies | remote.keys())}")
    return ShardDataset(samples, names, root, classes)


def _pair(
    tar: Path, name: str, members: dict[str, Place], given: str | None
) -> tuple[Place | None, Place | None]:
    """Image and mask of a sample; neither if it has no image.

    Raises:
        UserError: two images, of which none is known for the mask.
    """
    ends = MASK_ENDS if given is None else (given.lower(),)
    mask = next((end for end in ends if end in members), None)
    others = [end for end in members if end != mask and _is_image(end)]
    if mask == PNG and not others:
        mask, others = None, [PNG]  # an image without labels
    if len(others) > 1 or (mask == PNG and others[0].endswith(PNG)):
        raise UserError(
            f"{tar}/{name} has {' and '.join(sorted(filter(_is_image, members)))}: say which is "
            f"the mask, for example data.options masks: {others[-1]}"
        )
    if not others:
        return None, None
    return members[others[0]], None if mask is None else members[mask]


def _grouped(
    tar: Path, members: Sequence[Member], web: WebFile | None
) -> dict[str, dict[str, Place]]:
    """Members of a tar by the name of their sample and what follows its first dot."""
    found: dict[str, dict[str, Place]] = {}
    for name, offset, size in members:
        path = PurePosixPath(name)
        if path.name.startswith("."):  # files that macOS adds
            continue
        stem, _, end = path.name.partition(".")
        place = Place(tar, name, offset, size, web)
        found.setdefault(str(path.with_name(stem)), {})[end.lower()] = place
    return found


def _is_image(end: str) -> bool:
    return f".{end.rpartition('.')[2]}" in IMAGE_SUFFIXES


SHARDS = DatasetEntry(
    open_shards,
    "ROOT/<split>-*.tar with NAME.jpg and NAME.mask.png in them, or ROOT/<split>.urls with their "
    "addresses, and ROOT/classes.txt",
    found=lambda root: any(root.glob("*.tar")) or any(root.glob(f"*{SUFFIX}")),
    fetch=fetch_shards,
)
