"""Class ids from what mask files store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from aicsd.errors import UserError
from aicsd.images import Color, IntArray, UInt8Array, read_colors, read_values
from aicsd.types import IGNORE_INDEX

ReadMask = Callable[[Path], UInt8Array]
"""Mask file -> (H, W) class ids; a value that stands for no class is a UserError."""
NAMED = 3
"""Values or colours without class that an error names."""


class IdMasks:
    """Reads masks of one channel.

    Args:
        classes: number of classes.
        values: class id, or 255 for ignored, by stored value. Without it stored values are the
            class ids. 255 is ignored unless it is listed.
        other: class id, or 255, of every value that is not listed; None refuses it.
        nearest: take the nearest listed value, as lossy files need.
        hint: added to the error for a value without class.
        read: reads the stored values of a file.
    """

    def __init__(
        self,
        classes: int,
        values: Mapping[int, int] | None = None,
        *,
        other: int | None = None,
        nearest: bool = False,
        hint: str = "",
        read: Callable[[Path, bool], IntArray] = read_values,
    ) -> None:
        self.classes, self.other, self.nearest = classes, other, nearest
        self.hint, self.read = hint, read
        self.is_mapped = values is not None
        given = dict(values) if values is not None else {i: i for i in range(classes)}
        if not nearest:
            given.setdefault(IGNORE_INDEX, IGNORE_INDEX)
        self.values = dict(sorted(given.items()))
        self._ids, known = self._look_up(np.arange(256))
        self._unknown = (~known).astype(np.uint8)

    def __call__(self, path: Path) -> UInt8Array:
        """(H, W) class ids of a mask file."""
        stored = self.read(path, self.nearest)
        if stored.dtype == np.uint8:
            stored = np.ascontiguousarray(stored)
            # twenty times as fast as indexing
            unknown = cv2.LUT(stored, self._unknown).view(np.bool_)
            if unknown.any():
                raise self._without_class(path, stored[unknown])
            return cv2.LUT(stored, self._ids).astype(np.uint8, copy=False)
        values, inverse = np.unique(stored, return_inverse=True)
        ids, known = self._look_up(values)
        if not known.all():
            raise self._without_class(path, values[~known])
        return ids[inverse.reshape(stored.shape)]

    def _look_up(self, values: IntArray) -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
        """Class ids of stored values, and which of them are known."""
        listed = np.array(list(self.values), np.int64)
        ids = np.array(list(self.values.values()), np.uint8)
        place = np.searchsorted(listed, values).clip(0, len(listed) - 1)
        if self.nearest:
            below = (place - 1).clip(0)
            is_closer = np.abs(values - listed[below]) < np.abs(listed[place] - values)
            return ids[np.where(is_closer, below, place)], np.ones(len(values), np.bool_)
        known = listed[place] == values
        if self.other is None:
            return ids[place], known
        return np.where(known, ids[place], self.other).astype(np.uint8), known | True

    def _without_class(self, path: Path, values: IntArray) -> UserError:
        if self.is_mapped:
            found = ", ".join(map(str, np.unique(values)[:NAMED].tolist()))
            listed = ", ".join(map(str, self.values))
            return UserError(
                f"{path}: no class for the value {found}; data.options mask_values lists {listed} "
                "(other: ignored takes all others)"
            )
        return UserError(
            f"{path}: class id {values.min()} is out of range; there are {self.classes} classes "
            f"(ids 0 to {self.classes - 1}, {IGNORE_INDEX} = ignored){self.hint}"
        )


class ColorMasks:
    """Reads masks in colours.

    Args:
        colors: class id, or 255 for ignored, by RGB colour.
        source: file that lists the colours, for the error.
        nearest: take the nearest colour, as lossy files need.
    """

    def __init__(self, colors: Mapping[Color, int], source: Path, nearest: bool = False) -> None:
        table = sorted((_pack(color), class_id) for color, class_id in colors.items())
        self.source, self.nearest = source, nearest
        self._packed = np.array([packed for packed, _ in table], np.uint32)
        self._ids = np.array([class_id for _, class_id in table], np.uint8)

    def __call__(self, path: Path) -> UInt8Array:
        """(H, W) class ids of a mask file."""
        image = read_colors(path, self.nearest).astype(np.uint32)
        packed = image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]
        place = np.searchsorted(self._packed, packed).clip(0, len(self._packed) - 1)
        unknown = self._packed[place] != packed
        ids: UInt8Array = self._ids[place]
        if unknown.any():
            if not self.nearest:
                raise self._without_class(path, packed[unknown])
            ids[unknown] = self._nearest(packed[unknown])
        return ids

    def _nearest(self, packed: npt.NDArray[np.uint32]) -> UInt8Array:
        values, inverse = np.unique(packed, return_inverse=True)
        distance = np.zeros((len(values), len(self._packed)))
        for shift in (0, 8, 16):
            ours, theirs = values >> shift & 255, self._packed >> shift & 255
            distance += (ours[:, None].astype(float) - theirs) ** 2
        ids: UInt8Array = self._ids[distance.argmin(axis=1)][inverse]
        return ids

    def _without_class(self, path: Path, packed: npt.NDArray[np.uint32]) -> UserError:
        values, counts = np.unique(packed, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:NAMED]
        named = [f"{v >> 16},{v >> 8 & 255},{v & 255}" for v in values[order].tolist()]
        more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
        return UserError(
            f"{path}: no class for the colour {' and '.join(named)}{more} ({len(packed)} pixels); "
            f"{self.source} lists the colours, and a line ignored,r,g,b leaves one out"
        )


def _pack(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue
