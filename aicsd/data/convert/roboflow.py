"""Roboflow's semantic masks: ``NAME.jpg``, ``NAME_mask.png`` and ``_classes.csv`` in each split."""

from __future__ import annotations

import csv
from functools import partial

from aicsd.data.convert.picture import draw_ids
from aicsd.data.convert.source import (
    Format,
    Item,
    Settings,
    Source,
    clean_name,
    make_classes,
)
from aicsd.data.convert.tree import Tree, folder_of, split_of, stem_of
from aicsd.data.convert.values import integer
from aicsd.errors import UserError

CLASSES = "_classes.csv"
MASK_END = "_mask"


def recognise(tree: Tree) -> bool:
    """Whether a table of classes lies beside masks."""
    return bool(tree.by_base.get(CLASSES)) and bool(tree.with_suffix(f"{MASK_END}.png"))


def read(tree: Tree, settings: Settings) -> Source:  # noqa: ARG001
    """The images beside each table; classes of the same name are one in all of them."""
    tables = {file: _table(tree, file) for file in tree.by_base.get(CLASSES, [])}
    if not tables:
        raise UserError(f"no {CLASSES} in {tree.root}")
    names = list(dict.fromkeys(name for table in tables.values() for name in table.values()))
    classes = make_classes(names)
    items: list[Item] = []
    for file, table in tables.items():
        folder = folder_of(file)
        ids = {value: names.index(name) for value, name in table.items()}
        here = [image for image in tree.images(folder) if folder_of(image) == folder]
        masks = {stem_of(f): f for f in here if f.endswith(f"{MASK_END}.png")}
        for image in here:
            if image in masks.values():
                continue
            mask = masks.get(stem_of(image) + MASK_END)
            draw = partial(draw_ids, tree.root / mask, ids) if mask else None
            items.append(Item(stem_of(image), split_of(folder), tree.root / image, draw))
    return Source(classes, items, [])


def _table(tree: Tree, file: str) -> dict[int, str]:
    """Class names by pixel value."""
    found = {}
    for row in csv.reader(tree.text(file).splitlines()):
        value = integer(row[0].strip()) if row else None
        if value is not None and len(row) >= 2:
            found[value] = clean_name(row[1])
    if not found:
        raise UserError(f"{tree.root / file} names no class (pixel value, class)")
    return found


FORMAT = Format("roboflow", "_classes.csv beside *_mask.png", recognise, read)
