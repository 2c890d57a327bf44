"""COCO instances: one JSON file of polygons and run lengths a split (Lin et al., 2014)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from aicsd.data.convert.paint import (
    Region,
    Shape,
    box,
    ignored,
    outline,
    paint,
    require_pycocotools,
    run_lengths,
    union,
)
from aicsd.data.convert.source import (
    Draw,
    Format,
    Frame,
    Item,
    LeftOutError,
    Remark,
    Settings,
    Size,
    Source,
    object_classes,
)
from aicsd.data.convert.tree import OutsideError, Tree, folder_of, split_of, stem_of
from aicsd.data.convert.values import Record, integer, numbers, records, size, string
from aicsd.errors import UserError
from aicsd.images import UInt8Array

KEYS = ("images", "annotations", "categories")
NO_CLASS = "no class"
PREFERRED = "instances"
"""COCO's own annotations come in files of this name, beside others on the same images."""


class Photo(NamedTuple):
    """An entry of ``images`` whose file is there."""

    path: Path
    name: str
    split: str | None
    size: Size | None
    where: str

    def item(self, draw: Draw | None) -> Item:
        return Item(self.name, self.split, self.path, draw)


def recognise(tree: Tree) -> bool:
    """Whether a JSON file has COCO's keys and no segments."""
    return bool(annotation_files(tree))


def annotation_files(tree: Tree) -> list[str]:
    """The JSON files with COCO's instances."""
    found = [f for f in tree.json_files(*KEYS) if "segments_info" not in tree.json_keys(f)]
    preferred = [file for file in found if PurePosixPath(file).name.startswith(PREFERRED)]
    return preferred or found


def read(tree: Tree, settings: Settings) -> Source:
    """All images of all annotation files."""
    require_pycocotools("coco")
    files = {file: load(tree, file) for file in annotation_files(tree)}
    tables = {file: categories(content) for file, content in files.items()}
    classes, ids, rest = object_classes(used_names(files, tables), settings)
    items: list[Item] = []
    remarks: list[Remark] = []
    for file, content in files.items():
        class_of = {number: ids[n] for number, n in tables[file].items() if n in ids}
        found = by_image(content)
        for number, photo in photos(tree, file, content, remarks).items():
            objects = found.get(number)
            draw = partial(_draw, photo, objects, class_of, rest) if objects else None
            items.append(photo.item(draw))
    return Source(classes, items, remarks, rest if settings.background else None)


def load(tree: Tree, file: str) -> Record:
    """The content of an annotation file."""
    content = tree.json(file)
    if not isinstance(content, dict):
        raise UserError(f"{tree.root / file} is not a COCO file: it has no {', '.join(KEYS)}")
    return content


def categories(content: Record) -> dict[int, str]:
    """Category names by id, in the order of the ids."""
    found: dict[int, str] = {}
    for entry in records(content, "categories"):
        number, name = integer(entry.get("id")), string(entry.get("name"))
        if number is not None and name is not None:
            found[number] = name
    return dict(sorted(found.items()))


def used_names(files: Mapping[str, Record], tables: Mapping[str, dict[int, str]]) -> Iterable[str]:
    """Names of all files' categories, without those that only stand for a group of others."""
    groups, used = set(), set()
    for file, content in files.items():
        groups |= {
            group
            for entry in records(content, "categories")
            if (group := string(entry.get("supercategory"))) != entry.get("name")
        }
        numbers_used = {integer(a.get("category_id")) for a in records(content, "annotations")}
        used |= {name for number, name in tables[file].items() if number in numbers_used}
    every = dict.fromkeys(name for table in tables.values() for name in table.values())
    return [name for name in every if name in used or name not in groups]


def by_image(content: Record) -> dict[int, list[Record]]:
    """Annotations by the id of their image."""
    found: dict[int, list[Record]] = defaultdict(list)
    for annotation in records(content, "annotations"):
        number = integer(annotation.get("image_id"))
        if number is not None:
            found[number].append(annotation)
    return found


def photos(tree: Tree, file: str, content: Record, remarks: list[Remark]) -> dict[int, Photo]:
    """The images of an annotation file by id; those without file are remarked."""
    words = PurePosixPath(file).stem.split("_")[-1]
    split = split_of(file)
    hints = [words, *([split] if split else [])]
    folders = [folder_of(file), words, f"images/{words}", "images", ""]
    found: dict[int, Photo] = {}
    for entry in records(content, "images"):
        number, name = integer(entry.get("id")), string(entry.get("file_name"))
        where = f"{file}, image {name or number}"
        if number is None or name is None:
            remarks.append(Remark("image", "an entry without id or file_name", where))
            continue
        try:
            place = tree.find(name, folders, hints)
        except OutsideError as error:
            remarks.append(Remark("image", error.reason, where))
            continue
        except FileNotFoundError:
            remarks.append(Remark("image", "no such file", where))
            continue
        declared = size(entry.get("height"), entry.get("width"))
        found[number] = Photo(tree.root / place, stem_of(place), split, declared, where)
    return found


def _draw(
    photo: Photo,
    objects: list[Record],
    class_of: dict[int, int],
    rest: int,
    frame: Frame,
    remarks: list[Remark],
) -> UInt8Array:
    drawn = frame.of(photo.size, photo.where)
    shapes = []
    for entry in objects:
        where = f"{photo.where}, annotation {entry.get('id')}"
        try:
            shapes.append(_shape(entry, class_of, drawn, where, remarks))
        except LeftOutError as error:
            remarks.append(Remark("object", error.reason, error.where))
            with suppress(LeftOutError):
                shapes.append(ignored(_box(entry, drawn, where)))
    return paint(shapes, drawn, rest, photo.where, remarks, by_area=True)


def _shape(
    entry: Record, class_of: dict[int, int], drawn: Size, where: str, remarks: list[Remark]
) -> Shape:
    number = integer(entry.get("category_id"))
    region = _region(entry.get("segmentation"), drawn, where)
    if number not in class_of:
        remarks.append(Remark("object", NO_CLASS, where))
        return ignored(region)
    return Shape(region, class_of[number], bool(entry.get("iscrowd")))


def _region(segmentation: Any, drawn: Size, where: str) -> Region:
    if isinstance(segmentation, dict):
        if numbers(segmentation.get("size"), 2) != [drawn.height, drawn.width]:
            raise LeftOutError("run lengths of an image of another size", where)
        return run_lengths(segmentation.get("counts"), drawn, where)
    if not segmentation or not isinstance(segmentation, list):
        raise LeftOutError("a box without outline", where)
    if not isinstance(segmentation[0], list):
        return outline(segmentation, drawn, where)
    areas = [part for part in segmentation if not isinstance(part, list) or len(part) > 4]
    return union([outline(part, drawn, where) for part in areas or segmentation])


def _box(entry: Record, drawn: Size, where: str) -> Region:
    corner = numbers(entry.get("bbox"), 4)
    if corner is None:
        raise LeftOutError("neither outline nor box", where)
    x, y, width, height = corner
    return box(x, y, x + width, y + height, drawn, where)


FORMAT = Format(
    "coco", "*.json with images, annotations and categories", recognise, read, objects=True
)
