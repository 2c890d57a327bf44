"""On-disk format of cached teacher logits.

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
from torch import Tensor

from aicsd.data.augment import MAP_STRIDE
from aicsd.errors import UserError
from aicsd.images import UInt8Array

LOGITS_FILE = "logits.bin"
INDEX_FILE = "index.jsonl"
FORMATS = (1, 2)
"""2 holds a stride; 1, of caches at stride 4, does not: older versions read them too."""
CHOOSE = "choose another folder, or delete this one"


@dataclass(frozen=True)
class CacheKey:
    """Key of a cache: data and teacher; a cache with another key is refused.

    Args:
        teacher: fingerprint of the network.
        classes: names, in the order of the stored logits.
        top_k: number of stored largest logits of a cell; 0: all.
        names: names of the images.
        sizes: (H, W) of the images.
        stride: pixels between two cells of a map, 4 or more.
    """

    teacher: str
    classes: tuple[str, ...]
    top_k: int
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    stride: int = MAP_STRIDE

    def __post_init__(self) -> None:
        if not 0 <= self.top_k < len(self.classes):
            raise UserError(
                f"teacher_cache_top_k is {self.top_k}; with {len(self.classes)} classes it is 1 to "
                f"{len(self.classes) - 1}, or 0 to keep all"
            )
        if type(self.stride) is not int or self.stride < MAP_STRIDE:
            raise ValueError(f"stride is {self.stride}; it must be {MAP_STRIDE} or more")

    def bytes_of(self, index: int) -> int:
        """Size of one stored map."""
        height, width = map_size(self.sizes[index], self.stride)
        each = 3 * self.top_k + 2 if self.top_k else 2 * len(self.classes)
        return height * width * each

    def offsets(self) -> list[int]:
        """Offsets of the maps in the file, and its end."""
        return [0, *accumulate(self.bytes_of(index) for index in range(len(self.names)))]


class Checksums(NamedTuple):
    """CRC-32 of an image and of its map."""

    image: int
    logits: int


class Index(NamedTuple):
    """Content of ``index.jsonl``."""

    key: CacheKey
    checks: list[Checksums]
    """Checksums of the maps that are done, the first ones."""
    complete: bool


def map_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its stored map."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def encode(logits: Tensor, top_k: int) -> bytes:
    """A stored map: float16, all C or the k largest with their ids and the mass of the rest.

    Args:
        logits: (C, h, w).
        top_k: k; 0 keeps all.

    Raises:
        UserError: a value that is not a finite float16.
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


def checksum(image: UInt8Array) -> int:
    """CRC-32 of the pixels of an image."""
    return zlib.crc32(np.ascontiguousarray(image).data)


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


def first_line(key: CacheKey) -> str:
    """First line of ``index.jsonl``: the key of the cache."""
    facts = asdict(key)
    if key.stride == MAP_STRIDE:
        del facts["stride"]
    return json.dumps({"format": FORMATS["stride" in facts], **facts}) + "\n"


def last_line(text: bytes) -> str:
    """The line that completes an index of ``text``."""
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}) + "\n"


def read_index(folder: Path) -> Index | None:
    """Index of a cache, complete or not; None if there is none yet.

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
        if version not in FORMATS:
            raise UserError(
                f"teacher_cache {folder} has format {version}; this version reads "
                f"{' and '.join(map(str, FORMATS))}: {CHOOSE}"
            )
        key = _key(head)
        complete = bool(lines) and isinstance(lines[-1], dict)
        checks = [Checksums(*line) for line in (lines[:-1] if complete else lines)]
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(folder, f"{INDEX_FILE} makes no sense") from error
    if complete:
        body = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
        if whole != text or last_line(body).encode() != whole[len(body) :]:
            raise _damaged(folder, f"{INDEX_FILE} is not what was written")
    if len(checks) > len(key.names) or (complete and len(checks) < len(key.names)):
        raise _damaged(folder, f"{INDEX_FILE} has another number of images than it says")
    return Index(key, checks, complete)


def _key(head: dict[str, Any]) -> CacheKey:
    sizes = tuple((int(height), int(width)) for height, width in head.pop("sizes"))
    classes, names = tuple(head.pop("classes")), tuple(head.pop("names"))
    return CacheKey(classes=classes, names=names, sizes=sizes, **head)


def sound_maps(folder: Path, index: Index) -> Iterator[bool]:
    """Whether each map that is done is what was written, in order."""
    offsets = index.key.offsets()
    for place, checks in enumerate(index.checks):
        try:
            stored = read_map(folder, offsets[place], index.key.bytes_of(place))
        except UserError:
            yield False
            continue
        yield zlib.crc32(stored.data) == checks.logits


def require_sound(folder: Path, index: Index) -> None:
    """Refuse a complete cache whose maps are not what was written, by size and checksum."""
    path = folder / LOGITS_FILE
    size, expected = path.stat().st_size if path.is_file() else 0, index.key.offsets()[-1]
    if size != expected:
        raise _damaged(folder, f"{LOGITS_FILE} has {size} bytes instead of {expected}")
    for place, sound in enumerate(sound_maps(folder, index)):
        if not sound:
            name = index.key.names[place]
            raise _damaged(folder, f"the map of {name!r} is not what was written")
