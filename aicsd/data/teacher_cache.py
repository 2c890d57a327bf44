"""What the teacher says about every training image, computed once: the file, and crops of it.

A cache is a folder. ``logits.bin`` holds the maps one after another; the place of each follows from
the sizes of the images. ``index.jsonl`` is written line by line: what the cache belongs to, two
checksums for every map that is done, and, when all are, a digest of the lines above.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.data.base import Sample, SegDataset, UInt8Array
from aicsd.data.transforms import View
from aicsd.errors import UserError

LOGITS_FILE = "logits.bin"
INDEX_FILE = "index.jsonl"
FORMAT = 1
STRIDE = 4
"""Pixels between two cells of a stored map, and of a crop of it: those of the student's logits."""


@dataclass(frozen=True)
class Contents:
    """What a cache belongs to; one for anything else is refused.

    Args:
        teacher: fingerprint of the network.
        classes: names, in the order of the stored logits.
        top_k: how many of the largest logits of a cell are kept; 0 keeps all.
        names: of the images.
        sizes: (H, W) of the images.
    """

    teacher: str
    classes: tuple[str, ...]
    top_k: int
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not 0 <= self.top_k < len(self.classes):
            raise UserError(
                f"teacher_cache_top_k is {self.top_k}; with {len(self.classes)} classes it is 1 to "
                f"{len(self.classes) - 1}, or 0 to keep all"
            )

    def bytes_of(self, index: int) -> int:
        """Size of one stored map."""
        height, width = cells_of(self.sizes[index])
        each = 3 * self.top_k + 2 if self.top_k else 2 * len(self.classes)
        return height * width * each

    def offsets(self) -> list[int]:
        """Where every map begins, and where the last one ends."""
        return [0, *accumulate(self.bytes_of(index) for index in range(len(self.names)))]


class Checks(NamedTuple):
    """CRC-32 of an image and of its map."""

    image: int
    logits: int


class Index(NamedTuple):
    """What ``index.jsonl`` says."""

    contents: Contents
    checks: list[Checks]
    """Of the maps that are done, the first ones."""
    complete: bool


def cells_of(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its stored map."""
    return math.ceil(size[0] / STRIDE), math.ceil(size[1] / STRIDE)


def encode(logits: Tensor, top_k: int) -> bytes:
    """A stored map: float16, all C or the k largest with their ids and the mass of the rest.

    Args:
        logits: (C, h, w).
        top_k: k; 0 keeps all.

    Raises:
        UserError: a value that is no finite float16.
    """
    logits = logits.float()
    if not top_k:
        return _half(logits)
    values, ids = logits.topk(len(logits), dim=0)
    rest = values[top_k:].logsumexp(dim=0)
    return _half(values[:top_k]) + _half(rest) + ids[:top_k].to(torch.uint8).numpy().tobytes()


def _half(values: Tensor) -> bytes:
    half = values.to(torch.float16)
    if not half.isfinite().all():
        raise UserError(
            f"the teacher's logits reach {values.abs().max():g}, which the float16 of a "
            "teacher_cache does not hold: leave teacher_cache out"
        )
    return half.numpy().tobytes()


def decode(stored: UInt8Array, classes: int, size: tuple[int, int], top_k: int) -> Tensor:
    """(C, h, w) float32 of a stored map.

    With ``top_k``, the classes that were not kept share their mass evenly: the sum of the
    exponentials over the classes stays what it was.
    """
    cells = size[0] * size[1]
    halves = stored[: 2 * cells * (top_k + 1 if top_k else classes)].view(np.float16)
    maps = torch.from_numpy(halves).float().reshape(-1, *size)
    if not top_k:
        return maps
    ids = torch.from_numpy(stored[halves.nbytes :]).long().reshape(top_k, *size)
    shared = maps[top_k:] - math.log(classes - top_k)
    return shared.repeat(classes, 1, 1).scatter_(0, ids, maps[:top_k])


def crop_logits(logits: Tensor, size: tuple[int, int], view: View, side: int) -> Tensor:
    """The logits of a crop, from those of the whole image.

    Corners are aligned, as wherever logits meet pixels here: the cells of a map, of the image as of
    the crop, are spread evenly from its first pixel to its last. Between cells it is bilinear;
    beyond the image, where no loss looks, the border goes on.

    Args:
        logits: (C, h, w) of an image.
        size: (H, W) of the image.
        view: which part of it the crop shows.
        side: of the crop, in pixels.

    Returns:
        (C, s, s) with s = side / 4, rounded up.
    """
    rows = _places(side, view.top, view.rows, view.content_rows, size[0])
    columns = _places(side, view.left, view.columns, view.content_columns, size[1])
    if view.flipped:
        columns = columns.flip(0)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([x, y], dim=-1).float()
    return F.grid_sample(
        logits[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def _places(side: int, start: int, source: int, content: int, length: int) -> Tensor:
    """Where the cells of a crop are along one axis of the image: -1 its first pixel, 1 its last.

    Args:
        side: of the crop, in pixels.
        start: first pixel of the image that the crop shows.
        source: how many pixels of the image it shows.
        content: pixels of the crop that they become.
        length: of the image.
    """
    pixels = torch.linspace(0, side - 1, math.ceil(side / STRIDE), dtype=torch.float64)
    # resizing an image takes pixels as squares; what gets aligned is their outer edges
    places = start + (pixels + 0.5) * source / content - 0.5
    return 2 * places / max(length - 1, 1) - 1


def checksum(image: UInt8Array) -> int:
    """CRC-32 of the pixels of an image."""
    return zlib.crc32(np.ascontiguousarray(image).data)


class Taught:
    """A dataset together with what the teacher says about its images.

    Args:
        dataset: its images are among those of the cache.
        folder: of a complete cache.
        index: of the cache.

    Raises:
        UserError: images that the cache does not know, or knows with other pixels; at the first
            and the last one here, at any other when it is read.
    """

    def __init__(self, dataset: SegDataset, folder: Path, index: Index) -> None:
        self.dataset, self.folder = dataset, folder
        self.classes, self.names = dataset.classes, dataset.names
        self._contents, self._checks = index.contents, index.checks
        self._offsets = index.contents.offsets()
        places = {name: place for place, name in enumerate(index.contents.names)}
        unknown = [name for name in dataset.names if name not in places]
        if unknown:
            raise UserError(
                f"teacher_cache {folder} is of other data: it does not hold {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} more images' if unknown[1:] else ''}; {CHOOSE}"
            )
        self._places = [places[name] for name in dataset.names]
        for number in {0, len(dataset) - 1}:
            self.read(number)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        """As of the dataset."""
        sample, place = self.dataset.read(index), self._places[index]
        same_size = sample.image.shape[:2] == self._contents.sizes[place]
        if not same_size or checksum(sample.image) != self._checks[place].image:
            raise UserError(
                f"teacher_cache {self.folder} is of other data: its {self.names[index]!r} was "
                f"another image; {CHOOSE}"
            )
        return sample

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image."""
        return self._contents.sizes[self._places[index]]

    def logits(self, index: int) -> Tensor:
        """(C, h, w) float32: what the teacher says about an image."""
        contents, place = self._contents, self._places[index]
        stored = read_map(self.folder, self._offsets[place], contents.bytes_of(place))
        size = cells_of(contents.sizes[place])
        return decode(stored, len(contents.classes), size, contents.top_k)


CHOOSE = "choose another folder, or delete this one"


def read_map(folder: Path, offset: int, count: int) -> UInt8Array:
    """``count`` bytes of ``logits.bin``; fewer are an error."""
    # read and not mapped: a mapped file that gets shorter kills the process without a word
    try:
        stored = np.fromfile(folder / LOGITS_FILE, np.uint8, count, offset=offset)
    except OSError as error:
        raise UserError(f"{folder / LOGITS_FILE} cannot be read: {error.strerror}") from error
    if len(stored) < count:
        raise _damaged(folder, f"{LOGITS_FILE} is cut short")
    return stored


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"teacher_cache {folder} is damaged ({what}): delete it to build it again")


def first_line(contents: Contents) -> str:
    """The line of ``index.jsonl`` that says what the cache belongs to."""
    return json.dumps({"format": FORMAT, **asdict(contents)}) + "\n"


def last_line(text: bytes) -> str:
    """The line that completes an index of ``text``."""
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}) + "\n"


def read_index(folder: Path) -> Index | None:
    """What is in a cache, complete or not; None if nothing is there yet.

    Raises:
        UserError: the folder is something else, the index is damaged or of another version.
    """
    path = folder / INDEX_FILE
    try:
        text = path.read_bytes() if path.is_file() else b""
        strange = folder.exists() and {p.name for p in folder.iterdir()} - {INDEX_FILE, LOGITS_FILE}
        if strange and not text:
            raise UserError(f"teacher_cache: {folder} holds something else; name a new folder")
    except OSError as error:
        raise UserError(f"teacher_cache {folder} cannot be read: {error.strerror}") from error
    whole = text[: text.rfind(b"\n") + 1]  # a line that a kill cut short does not count
    if not whole:
        return None
    try:
        head, *lines = [json.loads(line) for line in whole.splitlines()]
        version = head.pop("format")
        if version != FORMAT:
            raise UserError(
                f"teacher_cache {folder} has format {version}; this version reads {FORMAT}: "
                f"{CHOOSE}"
            )
        contents = _contents(head)
        complete = bool(lines) and isinstance(lines[-1], dict)
        checks = [Checks(*line) for line in (lines[:-1] if complete else lines)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(folder, f"{INDEX_FILE} makes no sense") from error
    if complete:
        body = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
        if whole != text or last_line(body).encode() != whole[len(body) :]:
            raise _damaged(folder, f"{INDEX_FILE} is not what was written")
    if len(checks) > len(contents.names) or (complete and len(checks) < len(contents.names)):
        raise _damaged(folder, f"{INDEX_FILE} has another number of images than it says")
    return Index(contents, checks, complete)


def _contents(head: dict[str, Any]) -> Contents:
    sizes = tuple((int(height), int(width)) for height, width in head.pop("sizes"))
    classes, names = tuple(head.pop("classes")), tuple(head.pop("names"))
    return Contents(classes=classes, names=names, sizes=sizes, **head)


def sound_maps(folder: Path, index: Index) -> Iterator[bool]:
    """Whether each map that is done is what was written, in order."""
    offsets = index.contents.offsets()
    for place, checks in enumerate(index.checks):
        try:
            stored = read_map(folder, offsets[place], index.contents.bytes_of(place))
        except UserError:
            yield False
            continue
        yield zlib.crc32(stored.data) == checks.logits


def require_sound(folder: Path, index: Index) -> None:
    """Refuse a complete cache whose maps are not what was written, by size and checksum."""
    path = folder / LOGITS_FILE
    size, expected = path.stat().st_size if path.is_file() else 0, index.contents.offsets()[-1]
    if size != expected:
        raise _damaged(folder, f"{LOGITS_FILE} has {size} bytes instead of {expected}")
    for place, sound in enumerate(sound_maps(folder, index)):
        if not sound:
            name = index.contents.names[place]
            raise _damaged(folder, f"the map of {name!r} is not what was written")
