"""ADE20K's scene parsing benchmark, ``ADEChallengeData2016`` (Zhou et al., 2017)."""

from __future__ import annotations

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
from aicsd.types import IGNORE_INDEX

INFO = "objectInfo150.txt"
FULL = ("_seg.png", "_parts_1.png")
"""Endings of the files of the full data set."""


def recognise(tree: Tree) -> bool:
    """Whether the table of the 150 classes is there, or files of the full data set are."""
    return bool(tree.by_base.get(INFO)) or _is_full(tree)


def _is_full(tree: Tree) -> bool:
    return "index_ade20k.pkl" in tree.by_base or all(tree.with_suffix(end) for end in FULL)


def read(tree: Tree, settings: Settings) -> Source:  # noqa: ARG001
    """Every image; masks hold 1 to 150, and 0 for what is none of the 150, which is ignored."""
    if not tree.by_base.get(INFO):
        raise UserError(
            f"{tree.root} is the full ADE20K, whose 3000 classes do not fit 8-bit masks; "
            f"convert its scene parsing benchmark, ADEChallengeData2016 (with {INFO})"
        )
    file = min(tree.by_base[INFO])
    top = folder_of(file)
    names = _names(tree, file)
    ids = {0: IGNORE_INDEX} | {number: index for index, number in enumerate(names)}
    images, masks = (f"{top}/{n}" if top else n for n in ("images", "annotations"))
    mask_of = {stem_of(f)[len(masks) :]: f for f in tree.with_suffix(".png", below=masks)}
    items = []
    for image in tree.images(images):
        mask = mask_of.get(stem_of(image)[len(images) :])
        draw = partial(draw_ids, tree.root / mask, ids) if mask else None
        split = split_of(folder_of(image))
        items.append(Item(stem_of(image), split, tree.root / image, draw))
    return Source(make_classes(list(names.values())), items, [])


def _names(tree: Tree, file: str) -> dict[int, str]:
    """The first word for every class, where no other class has it, by the number in the masks."""
    full: dict[int, str] = {}
    for line in tree.text(file).splitlines():
        columns = [column for column in line.split("\t") if column.strip()]
        number = integer(columns[0].strip()) if columns else None
        if number is not None and len(columns) >= 2:
            full[number] = clean_name(columns[-1])
    if not full:
        raise UserError(f"{tree.root / file} names no class")
    first = [name.split(",")[0].strip() for name in full.values()]
    pairs = zip(full.items(), first, strict=True)
    return {n: short if first.count(short) == 1 else name for (n, name), short in pairs}


FORMAT = Format("ade20k", "objectInfo150.txt, images and annotations", recognise, read)
