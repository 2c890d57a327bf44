"""The files that name the classes of a user's own data: ``classes.txt`` and ``classes.csv``."""

from __future__ import annotations

import colorsys
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from aicsd.data.file_dataset import LayoutError
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.files import at_home, read_text
from aicsd.images import Color
from aicsd.types import IGNORE_INDEX

TEXT, TABLE = "classes.txt", "classes.csv"
IGNORED = "ignored"
"""Name of ignored colours or values in a table of colours or a map of values."""


class ColorTable(NamedTuple):
    """Classes of masks in colours."""

    classes: Classes
    colors: Mapping[Color, int]
    """Class id, or 255 for ignored, by colour."""


def find_classes(root: Path, given: str | None) -> Path:
    """The file that names the classes.

    Args:
        root: folder of the dataset.
        given: path of the file, from ``root`` or absolute; None: the one in ``root``.

    Raises:
        UserError: no such file, or both kinds.
    """
    if given is not None:
        path = root / at_home(given)
        if not path.is_file():
            raise UserError(f"data.options.classes: no file {path}")
        return path
    text, table = root / TEXT, root / TABLE
    if text.is_file() and table.is_file():
        raise UserError(
            f"{root} has both {TEXT} (masks hold ids) and {TABLE} (masks hold colours); remove "
            f"one, or choose it with data.options classes: {TEXT}"
        )
    if table.is_file():
        return table
    if not text.is_file():
        raise LayoutError(
            f"no {text}: write one class name a line, in the order of the ids; for masks in "
            f"colours write {TABLE} with the lines name,r,g,b; aicsd data convert reads what "
            "annotation tools export"
        )
    return text


def read_classes(path: Path) -> Classes:
    """Names, and colours where the file gives them; generated colours elsewhere.

    Raises:
        UserError: no such file, no text, no class, more than 255, or a name twice.
    """
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not 1 <= len(lines) <= IGNORE_INDEX:
        raise UserError(f"{path} names {len(lines)} classes; 1 to {IGNORE_INDEX} are possible")
    names: list[str] = []
    palette: list[Color] = []
    for number, words in enumerate(lines):
        color = _color(words[-3:]) if len(words) > 3 else None
        names.append(" ".join(words if color is None else words[:-3]))
        palette.append(color or distinct_color(number))
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{path} names {sorted(repeated)[0]!r} more than once")
    return Classes(tuple(names), tuple(palette))


def read_color_table(path: Path) -> ColorTable:
    """Classes and colours of ``name,r,g,b`` lines, in the order of the ids.

    A first line without numbers is a heading. A class in several lines has several
    colours; pictures show the first. ``ignored`` is not a class.

    Raises:
        UserError: no such file, no text, another kind of line, a colour twice, no class, or more
            than 255.
    """
    names: list[str] = []
    palette: list[Color] = []
    colors: dict[Color, int] = {}
    for number, row in enumerate(_rows(path), 1):
        words = [word.strip() for word in row]
        if not any(words) or (number == 1 and not any(word.isdigit() for word in words)):
            continue
        color = _color(words[1:]) if len(words) == 4 else None
        if color is None or not words[0]:
            raise UserError(
                f"{path}, line {number}: {','.join(row)[:60]!r} must be name,r,g,b with 0 to 255 "
                "each"
            )
        if color in colors:
            told = ",".join(words[1:])
            raise UserError(f"{path}, line {number}: the colour {told} appears twice")
        name = words[0]
        if name.lower() != IGNORED and name not in names:
            names.append(name)
            palette.append(color)
        colors[color] = IGNORE_INDEX if name.lower() == IGNORED else names.index(name)
    if not 1 <= len(names) <= IGNORE_INDEX:
        raise UserError(f"{path} names {len(names)} classes; 1 to {IGNORE_INDEX} are possible")
    return ColorTable(Classes(tuple(names), tuple(palette)), colors)


def _rows(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(read_text(path).splitlines(), skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"{path} holds no lines of name,r,g,b: {error}") from error


def _color(words: list[str]) -> Color | None:
    values = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 4]
    if len(words) != 3 or len(values) != 3 or max(values) > 255:
        return None
    return values[0], values[1], values[2]


def distinct_color(number: int) -> Color:
    """Colour ``number`` of an endless series in which neighbours differ (golden-ratio hues)."""
    hue = (0.61803398875 * number) % 1.0
    value = (0.95, 0.7, 0.85)[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.9, 0.55)[number % 3], value)
    return round(red * 255), round(green * 255), round(blue * 255)
