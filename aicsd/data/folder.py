"""A user's own data: ``images/<split>``, ``masks/<split>``, ``classes.txt``.

Masks are 8-bit grey or palette PNGs with the image's name, holding class ids in the order of
``classes.txt`` (one name a line, optionally followed by a colour: ``road 128 64 128``); 255 is
ignored.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

from aicsd.data.base import Classes, Color, FileDataset, match_masks, require_images
from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX

LAYOUT = "ROOT/images/<split>/*, ROOT/masks/<split>/*.png and ROOT/classes.txt (one name a line)"


def open_folder(root: Path, split: str) -> FileDataset:
    """One split below ``root``."""
    classes = read_classes(root / "classes.txt")
    return FileDataset(match_masks(root / "images" / split, root / "masks" / split), classes)


def folder_images(root: Path, split: str) -> list[Path]:
    """Images of one split, which needs no masks."""
    return require_images(root / "images" / split)


def read_classes(path: Path) -> Classes:
    """Names, and colours where the file gives them; generated colours elsewhere."""
    if not path.is_file():
        raise UserError(f"no {path}: write one class name a line, in the order of the ids")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= IGNORE_INDEX:
        raise UserError(f"{path} names {len(lines)} classes; 1 to {IGNORE_INDEX} are possible")
    names: list[str] = []
    palette: list[Color] = []
    for number, words in enumerate(lines):
        color = [int(word) for word in words[-3:] if word.isascii() and word.isdigit()]
        if len(words) > 3 and len(color) == 3 and max(color) <= 255:
            words = words[:-3]
            palette.append((color[0], color[1], color[2]))
        else:
            palette.append(distinct_color(number))
        names.append(" ".join(words))
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{path} names {sorted(repeated)[0]!r} more than once")
    return Classes(tuple(names), tuple(palette))


def distinct_color(number: int) -> Color:
    """Colour ``number`` of an endless series in which neighbours differ (golden-ratio hues)."""
    hue = (0.61803398875 * number) % 1.0
    value = (0.95, 0.7, 0.85)[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.9, 0.55)[number % 3], value)
    return round(red * 255), round(green * 255), round(blue * 255)
