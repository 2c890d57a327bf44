"""COCO panoptic: a JSON file and a PNG of segment numbers an image (Kirillov et al., 2019)."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from aicsd.data.convert.coco import Photo, categories, load, photos
from aicsd.data.convert.picture import colors_in, ids_in, kind_of, map_ids
from aicsd.data.convert.source import (
    Format,
    Frame,
    Item,
    Remark,
    Settings,
    Source,
    clean_name,
    make_classes,
)
from aicsd.data.convert.tree import OutsideError, Tree, folder_of
from aicsd.data.convert.values import Record, integer, records, string
from aicsd.errors import UserError
from aicsd.images import UInt8Array
from aicsd.types import IGNORE_INDEX

VOID = 0
"""Segment number of pixels without label."""


def recognise(tree: Tree) -> bool:
    """Whether a JSON file has COCO's keys and segments."""
    return bool(annotation_files(tree))


def annotation_files(tree: Tree) -> list[str]:
    """The JSON files with panoptic annotations."""
    return tree.json_files("annotations", "categories", "segments_info")


def read(tree: Tree, settings: Settings) -> Source:  # noqa: ARG001
    """All images of all annotation files; things and stuff are classes alike."""
    files = {file: load(tree, file) for file in annotation_files(tree)}
    if not files:
        raise UserError(f"no JSON file with segments_info in {tree.root}")
    tables = {
        file: {number: clean_name(name) for number, name in categories(content).items()}
        for file, content in files.items()
    }
    names = list(dict.fromkeys(name for table in tables.values() for name in table.values()))
    classes = make_classes(names)
    items: list[Item] = []
    remarks: list[Remark] = []
    for file, content in files.items():
        class_of = {number: names.index(name) for number, name in tables[file].items()}
        entries = {integer(a.get("image_id")): a for a in records(content, "annotations")}
        for number, photo in photos(tree, file, content, remarks).items():
            entry = entries.get(number)
            if entry is None:
                items.append(photo.item(None))
                continue
            mask = _mask_file(tree, file, entry, photo, remarks)
            if mask is not None:
                items.append(photo.item(partial(_draw, mask, _segments(entry, class_of), photo)))
    return Source(classes, items, remarks)


def _mask_file(
    tree: Tree, file: str, entry: Record, photo: Photo, remarks: list[Remark]
) -> Path | None:
    stem = PurePosixPath(file).stem
    folder = folder_of(file)
    beside = f"{folder}/{stem}" if folder else stem
    folders = [beside, stem, stem.removeprefix("panoptic_"), "masks", folder]
    name = string(entry.get("file_name")) or ""
    try:
        return tree.root / tree.find(name, folders, [stem, *([photo.split] if photo.split else [])])
    except OutsideError as error:
        remarks.append(Remark("image", error.reason, f"{photo.where}, mask {name}"))
    except FileNotFoundError:
        remarks.append(Remark("image", "no such mask", f"{photo.where}, mask {name}"))
    return None


def _segments(entry: Record, class_of: dict[int, int]) -> dict[int, int]:
    found = {VOID: IGNORE_INDEX}
    for segment in records(entry, "segments_info"):
        number, category = integer(segment.get("id")), integer(segment.get("category_id"))
        if number is not None and category in class_of:
            found[number] = class_of[category]
    return found


def _draw(
    mask: Path, segments: dict[int, int], photo: Photo, frame: Frame, remarks: list[Remark]
) -> UInt8Array:
    frame.of(photo.size, photo.where)
    if kind_of(mask, str(mask)) == "grey":
        return map_ids(ids_in(mask, str(mask)), segments, str(mask), remarks, "segment")
    colors = colors_in(mask, str(mask)).astype(np.int64)
    numbers = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    return map_ids(numbers, segments, str(mask), remarks, "segment")


FORMAT = Format(
    "coco-panoptic", "*.json with annotations and segments_info, and its PNGs", recognise, read
)
