"""Datasets that keep images and masks in files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aicsd.data.masks import IdMasks, ReadMask
from aicsd.data.protocol import Classes, Sample
from aicsd.errors import UserError
from aicsd.images import (
    IMAGE_SUFFIXES,
    UInt8Array,
    image_orientation,
    image_size,
    list_images,
    read_image,
)
from aicsd.types import IGNORE_INDEX


class Pair(NamedTuple):
    """The files of one sample."""

    image: Path
    mask: Path | None
    """None: the image has no labels; its mask is 255 everywhere."""


class MasksWithheldError(UserError):
    """The owners of a benchmark keep the masks of this split; only its images can be used."""


class LayoutError(UserError):
    """Files are not where the layout of the dataset has them; the layout is added to the text."""


class FileDataset:
    """Images and masks in files of equal size.

    Args:
        pairs: the files of every sample; they need not be there until they are read.
        classes: names and colours.
        read_mask: reads a mask file; without it masks hold class ids.
        names: names of the samples; without it those of the images, without suffix.
        official_count: samples that the owners of the dataset count in this split, if known.
        notes: remarks on a split of usable samples, one line each.

    Raises:
        UserError: two samples of one name.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        classes: Classes,
        read_mask: ReadMask | None = None,
        *,
        names: Iterable[str] | None = None,
        official_count: int | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        counted = [] if official_count is None else count_note(len(self.pairs), official_count)
        self.notes = [*counted, *notes]
        found = [pair.image.stem for pair in self.pairs] if names is None else names
        self.names = [readable(name) for name in found]
        self._require_different_names()
        self.read_mask = read_mask or IdMasks(len(classes.names))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labelled(self) -> list[int]:
        return [index for index, pair in enumerate(self.pairs) if pair.mask is not None]

    def read(self, index: int) -> Sample:
        """Decode sample ``index``; a broken or mismatched file is a UserError that names it."""
        image = read_image(self.pairs[index].image)
        return Sample(image, self._mask(index, (image.shape[0], image.shape[1])))

    def check_pair(self, index: int) -> Sample:
        """Read the labels alone; the image is empty and only has its size.

        Raises:
            UserError: a file that is not there or broken, wrong ids, or two sizes.
        """
        height, width = self.size(index)
        empty: UInt8Array = np.broadcast_to(np.uint8(0), (height, width, 3))
        return Sample(empty, self._mask(index, (height, width)))

    def _mask(self, index: int, size: tuple[int, int]) -> UInt8Array:
        pair = self.pairs[index]
        if pair.mask is None:
            return np.full(size, IGNORE_INDEX, np.uint8)
        mask = self.read_mask(pair.mask)
        if size != mask.shape:
            turned = size == mask.shape[::-1] and image_orientation(pair.image) >= 5
            raise UserError(
                f"{pair.image} is {size[1]}x{size[0]} but its mask {pair.mask} is "
                f"{mask.shape[1]}x{mask.shape[0]}; they must have one size"
                + (", and EXIF turns the image: turn the mask too" if turned else "")
            )
        return mask

    def require_files(self) -> None:
        """Refuse a split of which files are missing, naming the first."""
        missing = [path for pair in self.pairs for path in pair if path and not path.is_file()]
        if missing:
            raise UserError(
                f"no file {missing[0]}{and_more(len(missing) - 1, 'files')}, though the split "
                "needs it (aicsd data check lists every such file)"
            )

    def is_turned(self, index: int) -> bool:
        """Whether EXIF turns or mirrors the image, and not its mask."""
        image, mask = self.pairs[index]
        return mask is not None and image_orientation(image) > 1 == image_orientation(mask)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, from the head of its file."""
        return image_size(self.pairs[index].image)

    def _require_different_names(self) -> None:
        first: dict[str, Path] = {}
        for name, pair in zip(self.names, self.pairs, strict=True):
            if first.setdefault(name, pair.image) is not pair.image:
                raise UserError(
                    f"{first[name]} and {pair.image} have the same name, {name!r}; the images of a "
                    "split need different ones, and each its own mask: move one of them away"
                )


def readable(name: str) -> str:
    """A file name as text that can be printed and saved; bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def count_note(count: int, official: int) -> list[str]:
    """A line for a split that is not complete; nothing for a complete one."""
    return [] if count == official else [f"{count} images; the official split has {official}"]


def require_folder(folder: Path) -> Path:
    """``folder``, if it is one."""
    if not folder.is_dir():
        raise LayoutError(f"no folder {folder}")
    return folder


def require_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; none is an error."""
    found = list_images(require_folder(folder))
    if not found:
        raise LayoutError(f"no images in {folder} (looked for {' '.join(IMAGE_SUFFIXES)})")
    return found


def match_masks(images: Sequence[Path], masks: Path) -> tuple[list[Pair], list[str]]:
    """Pair every image with the mask of the same stem.

    Args:
        images: image files.
        masks: folder of the masks.

    Returns:
        The pairs, and a line about masks that have no image.

    Raises:
        UserError: no such folder, an image without mask or with two.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(require_folder(masks)):
        by_stem.setdefault(path.stem, []).append(path)
    missing = [path for path in images if path.stem not in by_stem]
    if missing:
        raise LayoutError(
            f"no mask for {missing[0]}{and_more(len(missing) - 1, 'images')} in {masks}; a mask "
            "has its image's name"
        )
    pairs = [Pair(path, only_mask(path, by_stem[path.stem])) for path in images]
    stems = {path.stem for path in images}
    spare = [path for stem, paths in by_stem.items() if stem not in stems for path in paths]
    return pairs, spare_note(spare)


def only_mask(image: Path, masks: Sequence[Path]) -> Path:
    """The mask of an image; of several, none can be chosen."""
    if len(masks) > 1:
        raise UserError(f"{image} has two masks, {masks[0]} and {masks[1]}; move one of them away")
    return masks[0]


def spare_note(masks: Sequence[Path]) -> list[str]:
    """A line for masks without an image; nothing if there are none."""
    if not masks:
        return []
    first = readable(str(masks[0]))
    if len(masks) == 1:
        return [f"1 mask has no image and is left out: {first}"]
    return [f"{len(masks)} masks have no image and are left out, such as {first}"]


def and_more(count: int, what: str) -> str:
    """`` and 3 more files``; nothing for none."""
    return f" and {count} more {what}" if count else ""
