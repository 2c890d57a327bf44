"""Check of a split: usable samples, unusable ones, and the contents of the masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from aicsd.data.file_dataset import FileDataset, MasksWithheldError, readable
from aicsd.data.masks import IdMasks
from aicsd.data.open import Options, image_paths, open_unchecked
from aicsd.data.padding import padding_warning
from aicsd.data.protocol import Sample, SegDataset, Splits
from aicsd.data.settings import AugmentConfig
from aicsd.data.shards import ShardDataset
from aicsd.data.wrappers import Subset
from aicsd.errors import UserError
from aicsd.images import read_image
from aicsd.types import IGNORE_INDEX

T = TypeVar("T")
NAMED = 5
"""Classes without a pixel that a note names."""
SAMPLED = 200
"""Samples on a web server that are checked before a training."""


class Survey(NamedTuple):
    """Result of the check of a split."""

    images: int
    problems: list[str]
    """One line for every sample that cannot be used."""
    notes: list[str]
    """Remarks on odd but usable data, one line each."""
    sizes: Counter[tuple[int, int]]
    """(H, W) of usable images, and how many have it."""
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    """Pixels of every class in the usable masks."""
    ignored: int
    """Pixels without label."""
    present: tuple[int, ...]
    """Images that every class is in."""
    refusals: tuple[str, ...] = ()
    """Labels that are valid and cannot be meant; one line each."""


def survey(
    name: str,
    root: str | None,
    split: str,
    options: Options | None = None,
    decode_images: bool = True,
) -> Survey:
    """Check every file of a split; of a split without public masks, the images.

    Args:
        name: dataset.
        root: its folder.
        split: which split.
        options: further options of the dataset.
        decode_images: decode the images too; without it only their sizes are read.

    Raises:
        UserError: the split cannot be opened at all.
    """
    try:
        dataset = open_unchecked(name, root, split, options)
    except MasksWithheldError as error:
        paths = image_paths(name, root, split, options)
        problems = [
            e
            for e in _in_threads(_errors_of(lambda i: read_image(paths[i])), len(paths))
            if e is not None
        ]
        note = f"only images are checked: {error}"
        return Survey(len(paths), problems, [note], Counter(), (), (), 0, ())
    return survey_dataset(dataset, decode_images)


def survey_dataset(dataset: SegDataset, decode_images: bool = False) -> Survey:
    """Check every sample of a split.

    Args:
        dataset: the split.
        decode_images: decode images in files too; without it only their sizes are read.
    """
    problems: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    pixels, present = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for found in _examined(dataset, decode_images):
        if isinstance(found, str):
            problems.append(found)
            continue
        sizes[found.size] += 1
        pixels += found.pixels
        present += found.pixels > 0
    count = len(dataset.classes.names)
    result = Survey(
        len(dataset),
        problems,
        list(getattr(dataset, "notes", [])),
        sizes,
        dataset.classes.names,
        tuple(pixels[:count].tolist()),
        int(pixels[IGNORE_INDEX]),
        tuple(present[:count].tolist()),
    )
    refused, notes = _meaning(result, dataset)
    notes += _turned(dataset) if decode_images else []
    return result._replace(refusals=tuple(refused), notes=[*result.notes, *notes])


def check_dataset(dataset: SegDataset, decode_images: bool = False) -> Iterator[str]:
    """Yield one line for every sample that cannot be used; nothing for a sound dataset.

    Args:
        dataset: the split.
        decode_images: decode images in files too; without it only their sizes are read.
    """
    return (found for found in _examined(dataset, decode_images) if isinstance(found, str))


def check_splits(splits: Splits, augment: AugmentConfig | None = None) -> list[str]:
    """Refuse splits that cannot be trained on and validated on.

    Of a split on a web server, ``SAMPLED`` samples are checked: all would be a download.

    Args:
        splits: images to train and to validate on.
        augment: crops of the training images; too large ones get a line.

    Returns:
        A line for everything odd.

    Raises:
        UserError: the first sample that cannot be used, or labels that cannot be meant.
    """
    notes: list[str] = []
    for name, dataset in zip(splits._fields, splits, strict=True):
        if isinstance(dataset, ShardDataset) and dataset.is_remote and len(dataset) > SAMPLED:
            result = survey_dataset(Subset(dataset, SAMPLED))
            # a class of which these have no pixel may be in others
            text = f"{SAMPLED} of {len(dataset)} samples were checked (aicsd data check reads all)"
            result = result._replace(refusals=(), notes=[*dataset.notes, text])
        else:
            result = survey_dataset(dataset)
        if result.problems:
            more = len(result.problems) - 1
            counted = f" and {more} more problem{'s' * (more > 1)}" if more else ""
            raise UserError(
                f"{result.problems[0]}{counted} (aicsd data check lists every such file)"
            )
        for refusal in result.refusals:
            raise UserError(f"{name}: {refusal}")
        notes += [f"{name}: {note}" for note in result.notes]
        if augment is not None and dataset is splits.train:
            warning = padding_warning(result.sizes, augment)
            notes += [] if warning is None else [warning]
    return notes


class _Labels(NamedTuple):
    size: tuple[int, int]
    pixels: npt.NDArray[np.int64]
    """Number of pixels of every id, 0 to 255."""


def _examined(dataset: SegDataset, decode_images: bool) -> Iterator[_Labels | str]:
    """Contents of every sample, or the reason why it cannot be used, in order."""
    read: Callable[[int], Sample] = dataset.read
    if isinstance(dataset, FileDataset) and not decode_images:
        read = dataset.check_pair

    def examine(index: int) -> _Labels | str:
        try:
            sample = read(index)
            _require_sound(sample, dataset, index)
        except UserError as error:
            return str(error)
        height, width = sample.mask.shape
        return _Labels((height, width), np.bincount(sample.mask.ravel(), minlength=256))

    return _in_threads(examine, len(dataset))


def _require_sound(sample: Sample, dataset: SegDataset, index: int) -> None:
    """Refuse a sample that is not as the protocol of datasets has it."""
    image, mask = np.asarray(sample.image), np.asarray(sample.mask)
    where = f"sample {index} ({dataset.names[index]!r})"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{where}: the image is {image.dtype} of shape {image.shape}; it must be uint8 of "
            "shape (H, W, 3)"
        )
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise UserError(
            f"{where}: the mask is {mask.dtype} of shape {mask.shape}; it must be uint8 of shape "
            f"{image.shape[:2]}, as the image"
        )
    count = len(dataset.classes.names)
    wrong = np.bincount(mask.ravel(), minlength=256)[count:IGNORE_INDEX].nonzero()[0]
    if len(wrong):
        raise UserError(
            f"{where}: class id {wrong[0] + count} is out of range; there are {count} classes"
        )


def _errors_of(check: Callable[[int], object]) -> Callable[[int], str | None]:
    def problem(index: int) -> str | None:
        try:
            check(index)
        except UserError as error:
            return str(error)
        return None

    return problem


def _in_threads(work: Callable[[int], T], count: int) -> Iterator[T]:
    with ThreadPoolExecutor() as pool:
        yield from pool.map(work, range(count))


def _turned(dataset: SegDataset) -> list[str]:
    """A line for images that EXIF turns or mirrors, and not their masks: sizes may agree."""
    if not isinstance(dataset, FileDataset):
        return []
    turned = [i for i, found in enumerate(_in_threads(dataset.is_turned, len(dataset))) if found]
    if not turned:
        return []
    first = dataset.pairs[turned[0]].image
    count = "1 image is" if len(turned) == 1 else f"{len(turned)} images are"
    return [
        f"{count} turned or mirrored by EXIF and the mask{'s' * (len(turned) > 1)} not, such as "
        f"{readable(str(first))}: do the masks fit the upright images? aicsd data check --sheet "
        "shows them"
    ]


def _meaning(found: Survey, dataset: SegDataset) -> tuple[list[str], list[str]]:
    """Implausible and odd properties of labels that are all valid."""
    with_pixels = [index for index, count in enumerate(found.pixels) if count]
    without = [index for index, count in enumerate(found.pixels) if not count]
    if not len(dataset.labelled) or not found.sizes:
        return [], []
    if not with_pixels:
        return ["every pixel of the masks is ignored (255): they hold no label"], []
    if len(found.classes) == 1:
        return [
            f"the data has one class, {found.classes[0]!r}, so that every prediction is right; "
            "name one for all other pixels too, such as background"
        ], []
    if not without:
        return [], []
    names = found.classes
    takes_values = isinstance(dataset, FileDataset) and isinstance(dataset.read_mask, IdMasks)
    if len(names) == 2 and found.ignored:
        here, absent = names[with_pixels[0]], names[without[0]]
        offer = (
            f": --data.options '{{mask_values: {{{with_pixels[0]}: {here}, 255: {absent}}}}}'"
            if takes_values
            else ""
        )
        return [
            f"the masks hold {with_pixels[0]} ({here}) and 255 alone, and 255 means ignored, so "
            f"that class {absent!r} has no pixel; if 255 is {absent!r}, say so{offer}"
        ], []
    listed = ", ".join(repr(names[index]) for index in without[:NAMED])
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    note = f"no pixel of class {listed}{more}"
    if without[0] == 0 and with_pixels[-1] == len(names) - 1:
        note += " (class ids begin at 0; do those of these masks begin at 1?)"
    return [], [note]
