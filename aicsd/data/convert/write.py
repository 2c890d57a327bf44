"""The folder layout, written from what a format finds."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from aicsd.data.convert.picture import inspect_image, make_upright
from aicsd.data.convert.source import Item, LeftOutError, Remark, Source
from aicsd.data.folder import UNLABELLED
from aicsd.data.protocol import Classes
from aicsd.images import encode_ids
from aicsd.types import IGNORE_INDEX

Empty = Literal["unlabelled", "background", "leave_out"]
"""Use of an image without annotation."""
IDS = IGNORE_INDEX + 1
SCRATCH = "scratch"
MOVED = "no annotation: put into the split unlabelled (see --empty)"
_AT_ONCE = 32
_MAX_STEM = 100


@dataclass
class Written:
    """Contents of the folder."""

    images: dict[str, int] = field(default_factory=dict)
    """Images by split."""
    pixels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(256,) pixels by class id, by split."""
    remarks: list[Remark] = field(default_factory=list)

    def count(self, pixels: dict[int, int], split: str, images: int) -> None:
        """Add one image to a split, or take it away (``images`` -1)."""
        self.images[split] = self.images.get(split, 0) + images
        held = self.pixels.setdefault(split, np.zeros(IDS, np.int64))
        for class_id, number in pixels.items():
            held[class_id] += images * number


class _Ready(NamedTuple):
    """An image that was read, and its mask."""

    path: Path
    suffix: str
    mask: bytes | None
    """A PNG; None: the image has no annotation."""
    pixels: dict[int, int]
    """Number of pixels by class id, of the classes that there are."""


def write(
    source: Source,
    folder: Path,
    val: float,
    seed: int,
    empty: Empty,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write images, masks and ``classes.txt`` below ``folder``, which is there and empty.

    Args:
        source: the images.
        folder: folder for the layout.
        val: part of the images for validation, where the source names none.
        seed: seed of the choice of these.
        empty: use of images without annotation.
        progress: called with the images done and in all.
    """
    lines = zip(source.classes.names, source.classes.palette, strict=True)
    text = "".join(f"{name} {red} {green} {blue}\n" for name, (red, green, blue) in lines)
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    written = Written(remarks=list(source.remarks))
    items = _each_once(source.items, written.remarks)
    places = _Places(folder)
    scratch = folder / SCRATCH
    scratch.mkdir()
    fill = source.background if empty == "background" else None
    jobs = [
        _Job(item, scratch / str(index), source.classes, fill) for index, item in enumerate(items)
    ]
    pool: list[_Put] = []
    for done, (ready, remarks) in enumerate(_in_order(jobs), start=1):
        item = items[done - 1]
        written.remarks += remarks
        if ready is not None and ready.mask is None and empty == "leave_out":
            written.remarks.append(Remark("image", "no annotation", item.name))
        elif ready is not None:
            put = _put(ready, item, places, written)
            pool += [put] if put.split == "train" else []
        if progress is not None:
            progress(done, len(items))
    shutil.rmtree(scratch)
    if "val" not in written.images:
        _draw_val(pool, val, seed, places, written)
    if "train" not in written.images:
        written.remarks.append(Remark("note", "no image is of the split train", str(folder)))
    return written


def _each_once(items: Sequence[Item], remarks: list[Remark]) -> list[Item]:
    seen: set[object] = set()
    kept = []
    for item in items:
        key = item.image if isinstance(item.image, Path) else item.name
        if key in seen:
            remarks.append(Remark("image", "listed more than once, used once", item.name))
        else:
            seen.add(key)
            kept.append(item)
    return kept


class _Job(NamedTuple):
    item: Item
    scratch: Path
    """Gets the image if it is no file of its own."""
    classes: Classes
    fill: int | None
    """Class of all pixels of an image without annotation; None: it gets no mask."""


_Result = tuple[_Ready | None, list[Remark]]


def _in_order(jobs: list[_Job]) -> Iterator[_Result]:
    """Results of the jobs in their order, a few at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(jobs), _AT_ONCE):
            yield from pool.map(_prepare, jobs[start : start + _AT_ONCE])


def _prepare(job: _Job) -> _Result:
    item = job.item
    remarks: list[Remark] = []
    try:
        if isinstance(item.image, Path):
            path, where = item.image, str(item.image)
        else:
            path, where = job.scratch, item.name
            path.write_bytes(item.image())
        frame, orientation, suffix = inspect_image(path, where)
        mask = item.draw(frame, remarks) if item.draw is not None else None
        if mask is not None:
            mask, turned = make_upright(mask, frame, orientation, where)
            remarks += turned
        elif job.fill is not None:
            mask = np.full(frame.seen, job.fill, np.uint8)
    except LeftOutError as error:
        return None, [*remarks, Remark("image", error.reason, error.where)]
    if mask is None:
        return _Ready(path, suffix, None, {}), remarks
    counts = enumerate(np.bincount(mask.ravel()).tolist())
    pixels = {class_id: number for class_id, number in counts if number}
    return _Ready(path, suffix, encode_ids(mask, job.classes.palette), pixels), remarks


class _Places:
    """Names for images: their own, and more of their path where two would have one name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[tuple[str, str]] = set()

    def stem(self, name: str, split: str) -> str:
        """A file name without suffix that no other image of the split has, whatever its case."""
        short, long = _safe(name.rpartition("/")[2]), _safe(name.replace("/", "_"))
        numbered = (f"{long}_{number}" for number in count(2))
        for stem in chain((short, long), numbered):
            if (split, stem.lower()) not in self._taken:
                self._taken.add((split, stem.lower()))
                return stem
        raise AssertionError

    def put(self, part: str, split: str, name: str) -> Path:
        """``part/split/name``, whose folder is there."""
        path = self.folder / part / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _safe(name: str) -> str:
    """A name that every disk takes and no listing hides."""
    return re.sub(r"[^\w.() +=@,-]", "_", name).strip(" .")[-_MAX_STEM:].lstrip(" .") or "image"


class _Put(NamedTuple):
    """An image that lies in the folder."""

    name: str
    split: str
    image: Path
    mask: Path | None
    pixels: dict[int, int]
    """Number of pixels by class id, of the classes that there are."""


def _put(ready: _Ready, item: Item, places: _Places, written: Written) -> _Put:
    split = item.split or "train"
    if ready.mask is None and split != UNLABELLED:
        written.remarks.append(Remark("note", MOVED, item.name))
        split = UNLABELLED
    elif ready.mask is not None and split == UNLABELLED:
        split = "train"
    stem = places.stem(item.name, split)
    image = places.put("images", split, f"{stem}{ready.suffix}")
    shutil.copyfile(ready.path, image)
    if not isinstance(item.image, Path):
        ready.path.unlink()
    mask = None
    if ready.mask is not None:
        mask = places.put("masks", split, f"{stem}.png")
        mask.write_bytes(ready.mask)
    put = _Put(item.name, split, image, mask, ready.pixels)
    written.count(put.pixels, split, 1)
    return put


def _draw_val(pool: list[_Put], val: float, seed: int, places: _Places, written: Written) -> None:
    """Move part of train to val: the lowest hashes, so that a new image moves few others."""
    size = round(val * len(pool))
    if val > 0 and len(pool) > 1:
        size = min(max(size, 1), len(pool) - 1)
    for put in sorted(pool, key=lambda put: _hash(put.name, seed))[:size]:
        put.image.rename(places.put("images", "val", put.image.name))
        if put.mask is not None:
            put.mask.rename(places.put("masks", "val", put.mask.name))
        written.count(put.pixels, "train", -1)
        written.count(put.pixels, "val", 1)
    if size:
        reason = f"val is {size} of {len(pool)} images, drawn with --seed {seed}"
        written.remarks.append(Remark("note", reason, "the source has no val split"))


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
