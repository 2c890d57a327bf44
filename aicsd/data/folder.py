"""A user's own data: ``images/<split>``, ``masks/<split>``, ``classes.txt``.

Masks are 8-bit grey or palette PNGs with the image's name, holding class ids in the order of
``classes.txt`` (one name a line, optionally followed by a colour: ``road 128 64 128``); 255 is
ignored. The split ``unlabelled`` has images only; ``train+unlabelled`` is both splits.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

from aicsd.data.base import Classes, Color, FileDataset, Pair, match_masks, require_images
from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX

UNLABELLED = "unlabelled"
LAYOUT = "ROOT/images/<split>/*, ROOT/masks/<split>/*.png and ROOT/classes.txt (one name a line)"


def open_folder(root: Path, split: str) -> FileDataset:
    """One split below ``root``, or several joined by ``+``; ``unlabelled`` needs no masks."""
    classes = read_classes(root / "classes.txt")
    parts = {part: _pairs(root, part) for part in split.split("+")}
    dataset = FileDataset([pair for pairs in parts.values() for pair in pairs], classes)
    if len(parts) > 1:  # files of two splits may have one name
        dataset.names = [f"{part}/{pair.image.stem}" for part in parts for pair in parts[part]]
    return dataset


def _pairs(root: Path, split: str) -> list[Pair]:
    if split == UNLABELLED:
        return [Pair(image, None) for image in require_images(root / "images" / split)]
    return match_masks(root / "images" / split, root / "masks" / split)


def folder_images(root: Path, split: str) -> list[Path]:
    """Images of one split, or of several joined by ``+``, which need no masks."""
    return [path for part in split.split("+") for path in require_images(root / "images" / part)]


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
