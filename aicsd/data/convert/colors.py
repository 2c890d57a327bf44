"""Colours of masks, and tables that give each a class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from aicsd.errors import UserError
from aicsd.images import Color, UInt8Array
from aicsd.types import IGNORE_INDEX

UNKNOWN = -1
_NAMED_COLORS = 3
"""Colours without class that the report names for one mask; the others are counted together."""
_HEADERS = {("r", "g", "b"), ("red", "green", "blue")}


class ClassTable(NamedTuple):
    """Class names in the order of their ids, and which colours stand for each."""

    names: tuple[str, ...]
    colors: tuple[tuple[Color, int], ...]
    """Colour and class id, or ``IGNORE_INDEX``; empty: the table has names only."""
    ids: tuple[int, ...]
    """Class id, or ``IGNORE_INDEX``, of every row: what masks mean that hold row numbers."""

    def palette(self) -> list[Color] | None:
        """The first colour of every class; None if the table has none."""
        first = {class_id: color for color, class_id in reversed(self.colors)}
        return [first[i] for i in range(len(self.names))] if self.colors else None


def make_table(
    rows: Iterable[tuple[str, Color | None]], where: str, ignored: Iterable[str]
) -> ClassTable:
    """A table of rows; a name may have several colours, and ``ignored`` names are no classes.

    Raises:
        UserError: a colour with two names, or colours in some rows only.
    """
    names: list[str] = []
    colors: dict[Color, int] = {}
    ids: list[int] = []
    bare = False
    for name, color in rows:
        class_id = IGNORE_INDEX
        if name.lower() not in ignored:
            if name not in names:
                names.append(name)
            class_id = names.index(name)
        ids.append(class_id)
        if color is None:
            bare = True
        elif colors.setdefault(color, class_id) != class_id:
            raise UserError(f"{where} gives the colour {color} to two classes, one is {name!r}")
    if bare and colors:
        raise UserError(f"{where} gives some classes a colour and others none")
    return ClassTable(tuple(names), tuple(colors.items()), tuple(ids))


def parse_table(text: str, where: str, ignored: Iterable[str] = ()) -> ClassTable:
    """A table of one class a line: ``name``, ``name,r,g,b``, ``r g b name`` or ``name:r,g,b::``.

    Words may be separated by commas, semicolons, tabs or spaces; a heading and lines that begin
    with ``#`` are left out.

    Raises:
        UserError: no line names a class, or a colour that cannot be one.
    """
    rows = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            rows.append(_row(stripped, where))
    return make_table((row for row in rows if row is not None), where, set(ignored))


def _row(line: str, where: str) -> tuple[str, Color | None] | None:
    line = re.sub(r":[^:]*:[^:]*$", "", line) if line.count(":") >= 3 else line  # parts, actions
    words = [word for word in re.split(r"[,;:\t ]+", line) if word]
    if tuple(word.lower() for word in words[-3:]) in _HEADERS:
        return None
    numbers = [word for word in words if re.fullmatch(r"\d{1,4}", word, re.ASCII)]
    for place in (slice(len(words) - 3, None), slice(0, 3)):
        color = words[place] if len(words) > 3 else []
        if len(color) == 3 and all(word in numbers for word in color):
            values = tuple(int(word) for word in color)
            if max(values) > 255:
                raise UserError(f"{where}: {line!r} has a colour beyond 255")
            rest = words[:-3] if place.start else words[3:]
            return " ".join(rest), (values[0], values[1], values[2])
    return " ".join(words), None


class ColorReader:
    """Turns colours into class ids by a table of all 16.8 million of them."""

    def __init__(self, colors: Iterable[tuple[Color, int]]) -> None:
        self._ids = np.full(1 << 24, UNKNOWN, np.int16)
        for (red, green, blue), class_id in colors:
            self._ids[red << 16 | green << 8 | blue] = class_id

    def read(self, image: UInt8Array) -> tuple[UInt8Array, list[tuple[str, int]]]:
        """(H, W, 3) RGB -> (H, W) class ids, and the colours without class with their pixels.

        A colour without class becomes ``IGNORE_INDEX``.
        """
        wide = image.astype(np.uint32)
        packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        ids = self._ids[packed]
        unknown = ids == UNKNOWN
        found: list[tuple[str, int]] = []
        if unknown.any():
            values, counts = np.unique(packed[unknown], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            for index in order[:_NAMED_COLORS]:
                value = int(values[index])
                color = f"{value >> 16},{value >> 8 & 255},{value & 255}"
                found.append((f"colour {color} has no class", int(counts[index])))
            rest = int(counts[order[_NAMED_COLORS:]].sum())
            if rest:
                found.append(("other colours have no class", rest))
            ids[unknown] = IGNORE_INDEX
        return ids.astype(np.uint8), found
