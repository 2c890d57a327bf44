"""Objects painted into masks: outlines and run lengths, by pycocotools.

Outlines are filled as pycocotools fills them, the definition of COCO's masks: coordinates count
from the upper left corner of the image, (0.5, 0.5) is the centre of the first pixel, and an outline
that crosses itself is filled by the even-odd rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aicsd.data.convert.source import LeftOutError, Remark, Size
from aicsd.extras import require
from aicsd.images import UInt8Array
from aicsd.types import IGNORE_INDEX

MAX_OUTLINE = 2_000_000
"""Pixels around an object. pycocotools keeps 80 bytes for each, whatever the image's size."""
_REACH = 3
"""Largest distance of a point from the image, in image sides; farther ones are slips or attacks."""

Region = dict[str, Any]
"""A set of pixels, as pycocotools keeps it: ``size`` and run lengths."""


class Shape(NamedTuple):
    """An object on one image."""

    region: Region
    class_id: int
    crowd: bool = False
    """It marks many objects at once, so that a single one lies on top of it."""


def require_pycocotools(name: str) -> Any:
    """The module ``pycocotools.mask``, which the format ``name`` needs."""
    return require("pycocotools.mask", "convert", f"{name} needs pycocotools")


def outline(points: object, size: Size, where: str) -> Region:
    """The pixels inside an outline ``[x1, y1, x2, y2, ...]``.

    Raises:
        LeftOutError: fewer than three points, something that is not a number, or an outline that
            reaches far out of the image or is absurdly long.
    """
    mask = require_pycocotools("an outline")
    xy = _numbers(points, where)
    if len(xy) < 6 or len(xy) % 2:
        raise LeftOutError("an outline of fewer than three points", where)
    pairs = np.array(xy).reshape(-1, 2)
    far = np.array([size.width, size.height]) * _REACH
    if (pairs < -far).any() or (pairs > far + far / _REACH).any():
        raise LeftOutError("an outline that reaches far out of the image", where)
    if np.abs(pairs - np.roll(pairs, 1, axis=0)).max(axis=1).sum() > MAX_OUTLINE:
        raise LeftOutError(f"an outline of more than {MAX_OUTLINE} pixels", where)
    return _region(mask.frPyObjects([xy], size.height, size.width)[0])


def union(parts: Sequence[Region]) -> Region:
    """The pixels of any of the parts."""
    mask = require_pycocotools("an outline")
    return _region(mask.merge(list(parts)))


def from_array(inside: npt.NDArray[np.bool_]) -> Region:
    """The pixels that are True in (H, W)."""
    mask = require_pycocotools("a mask")
    return _region(mask.encode(np.asfortranarray(inside.astype(np.uint8))))


def box(x1: float, y1: float, x2: float, y2: float, size: Size, where: str) -> Region:
    """The pixels of an upright rectangle between two of its corners."""
    return outline([x1, y1, x2, y1, x2, y2, x1, y2], size, where)


def run_lengths(counts: object, size: Size, where: str) -> Region:
    """The pixels of COCO's run lengths, column by column, a list or COCO's string of them.

    They are checked here: where they do not add up to the image, pycocotools 2.0 returns whatever
    the memory held.

    Raises:
        LeftOutError: they are no run lengths of an image of this size.
    """
    mask = require_pycocotools("run lengths")
    runs = _decode(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != size.height * size.width
    ):
        raise LeftOutError("run lengths that do not add up to the image", where)
    packed = {"counts": runs, "size": [size.height, size.width]}
    return _region(mask.frPyObjects(packed, size.height, size.width))


def _decode(text: str) -> list[int] | None:
    """COCO's string: 5 bits a character, signed, from the fourth run on less the run two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else None


def paint(
    shapes: Sequence[Shape],
    size: Size,
    rest: int,
    where: str,
    remarks: list[Remark],
    by_area: bool,
) -> UInt8Array:
    """(H, W) class ids.

    Args:
        shapes: the objects, the lowest first.
        size: size of the mask.
        rest: id of pixels outside all objects.
        where: the image, for the remark on overlaps.
        remarks: gets one if two classes claim pixels.
        by_area: put smaller objects on top of larger ones, crowds below all; otherwise the order
            of ``shapes`` counts.
    """
    mask = require_pycocotools("an outline")
    ordered = list(shapes)
    if by_area:
        ordered.sort(key=lambda shape: (not shape.crowd, -int(mask.area(shape.region))))
    ids = np.full(size, rest, np.uint8)
    taken = np.zeros(size, bool)
    shared = 0
    for shape in ordered:
        inside = mask.decode(shape.region).view(bool)
        shared += int((inside & taken & (ids != shape.class_id)).sum())
        ids[inside] = shape.class_id
        taken |= inside
    if shared:
        rule = "the smaller" if by_area else "the later"
        remarks.append(Remark("note", f"objects overlap: {rule} one is on top", where))
    return ids


def ignored(region: Region) -> Shape:
    """An object whose class is not known: its pixels are ignored."""
    return Shape(region, IGNORE_INDEX)


def _numbers(points: object, where: str) -> list[float]:
    if not isinstance(points, list) or not all(
        type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value)
        for value in points
    ):
        raise LeftOutError("an outline that is not a list of numbers", where)
    return [float(value) for value in points]


def _region(region: Any) -> Region:
    return dict(region)
