"""Images and masks in folders or side by side, with a table of class names and colours."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from aicsd.data.convert.colors import ClassTable, ColorReader, parse_table
from aicsd.data.convert.picture import draw_colors, draw_ids, kind_of
from aicsd.data.convert.source import (
    IGNORED_WORDS,
    Format,
    Frame,
    Item,
    LeftOutError,
    Remark,
    Settings,
    Source,
    clean_name,
    make_classes,
)
from aicsd.data.convert.tree import Tree, folder_of, split_of, stem_of
from aicsd.errors import UserError
from aicsd.images import UInt8Array

TABLES = (
    "classes.csv",
    "class_dict.csv",
    "colors.csv",
    "colours.csv",
    "label_colors.txt",
    "classes.txt",
)
"""Names that tables of classes go by."""
_MASK = r"masks?|labels?|annot(?:ations?)?|segmentations?|seg|gt|ground_?truth"
_IMAGE = r"images?|imgs?|photos?|jpegimages"
_HEAD = r"^(?:(?P<head>.+)[_-]|(?P<split>train|val|test))?"
_MASK_FOLDER = re.compile(rf"{_HEAD}(?:{_MASK})(?:[_-].+)?$", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(rf"{_HEAD}(?:{_IMAGE})(?:[_-].+)?$", re.IGNORECASE)
_MASK_END = re.compile(rf"[_-](?:{_MASK}|L)$")


def recognise(tree: Tree) -> bool:
    """Whether some image files are masks, by the names of their folders or their own."""
    return any(_is_mask(file) for file in tree.images())


def read(tree: Tree, settings: Settings) -> Source:
    """Every image, with the mask of its name in the folder of masks that matches its own."""
    table = settings.table or _table(tree)
    palette = table.palette()
    classes = make_classes([clean_name(name) for name in table.names], palette)
    masks, loose = _masks(tree)
    ids = dict(enumerate(table.ids))
    colors = ColorReader(table.colors) if palette else None
    grey = palette is not None and all(len(set(color)) == 1 for color, _ in table.colors)
    items = []
    used: set[str] = set()
    for image in tree.images():
        if _is_mask(image):
            continue
        key = _key(image)
        mask = masks.get(key) or loose.get(key)
        draw = partial(_draw, tree.root / mask, ids, colors, grey) if mask else None
        used |= {mask} if mask else set()
        split = split_of(folder_of(image))
        items.append(Item(stem_of(image), split, tree.root / image, draw))
    spare = sorted(set(masks.values()) - used)
    return Source(classes, items, [Remark("file", "a mask without image", file) for file in spare])


def _table(tree: Tree) -> ClassTable:
    found = [file for name in TABLES for file in tree.by_base.get(name, [])]
    if not found:
        raise UserError(
            f"no table of classes in {tree.root}: give --classes FILE with a line name,r,g,b for "
            f"every class (names alone if the masks hold ids), or put it there as {TABLES[0]}"
        )
    file = min(found, key=lambda name: name.count("/"))
    return parse_table(tree.text(file), str(tree.root / file), IGNORED_WORDS)


def _masks(tree: Tree) -> tuple[dict[str, str], dict[str, str]]:
    """Mask files by the key of their image; and by it without an ending such as ``_mask``."""
    exact: dict[str, str] = {}
    loose: dict[str, str] = {}
    for file in filter(_is_mask, tree.images()):
        key = _key(file)
        other = exact.setdefault(key, file)
        if other != file:
            raise UserError(
                f"{tree.root / other} and {tree.root / file} may both be the mask of one image; "
                "move the one that does not count out of the source"
            )
        loose.setdefault(_MASK_END.sub("", key), file)
    return exact, loose


def _decisive(file: str) -> tuple[int, re.Match[str], bool] | None:
    """The deepest folder named after images or masks: its place, and whether it holds masks."""
    parts = file.split("/")[:-1]
    for index in reversed(range(len(parts))):
        for pattern, is_mask in ((_MASK_FOLDER, True), (_IMAGE_FOLDER, False)):
            match = pattern.match(parts[index])
            if match is not None:
                return index, match, is_mask
    return None


def _is_mask(file: str) -> bool:
    found = _decisive(file)
    return found[2] if found else _MASK_END.search(stem_of(file)) is not None


def _key(file: str) -> str:
    """Common key of an image and its mask: the path without the folder of either kind."""
    parts = stem_of(file).split("/")
    found = _decisive(file)
    if found is not None:
        index, match, _ = found
        head = match["head"] or match["split"]
        parts[index : index + 1] = [head] if head and split_of(head) else []
    return "/".join(parts)


def _draw(
    mask: Path,
    ids: dict[int, int],
    colors: ColorReader | None,
    grey: bool,
    frame: Frame,
    remarks: list[Remark],
) -> UInt8Array:
    where = str(mask)
    kind = kind_of(mask, where)
    if colors is None:
        if kind == "colors":
            raise LeftOutError("a mask of colours; give --classes with colours", where)
        return draw_ids(mask, ids, frame, remarks)
    if grey or kind == "colors":
        return draw_colors(mask, colors, where, remarks)
    if kind == "palette":
        unknown: list[Remark] = []
        drawn = draw_colors(mask, colors, where, unknown)
        if not unknown:
            return drawn
    return draw_ids(mask, ids, frame, remarks)


FORMAT = Format(
    "masks",
    "images and masks of one name, in folders such as images and masks",
    recognise,
    read,
    takes_table=True,
    general=True,
)
