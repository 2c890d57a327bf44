"""LabelMe: a JSON file of shapes for each image (github.com/wkentaro/labelme)."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

import numpy as np

from aicsd.data.convert.coco import NO_CLASS
from aicsd.data.convert.paint import (
    Region,
    Shape,
    box,
    from_array,
    ignored,
    outline,
    paint,
    require_pycocotools,
)
from aicsd.data.convert.source import (
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
from aicsd.data.convert.values import Record, numbers, record, records, size, string
from aicsd.errors import UserError
from aicsd.images import IMAGE_SUFFIXES, UInt8Array, decode_image

LABELS = "labels.txt"
"""The names that LabelMe was started with, one a line: they give the order of the classes."""
AREALESS = ("point", "points", "line", "linestrip")


def recognise(tree: Tree) -> bool:
    """Whether one of the first JSON files has shapes and the path of an image."""
    return bool(tree.json_files("shapes", "imagePath"))


def read(tree: Tree, settings: Settings) -> Source:
    """All JSON files with shapes, and the images that none of them names."""
    require_pycocotools("labelme")
    remarks: list[Remark] = []
    annotated: dict[object, Item] = {}
    names: set[str] = set()
    ids: dict[str, int] = {}
    for file in tree.with_suffix(".json"):
        try:
            content = record(tree.json(file))
        except UserError as error:
            remarks.append(Remark("file", "not readable", str(error)))
            continue
        if not isinstance(content.get("shapes"), list):
            continue
        item = _item(tree, file, content, ids, settings, remarks)
        if item is None:
            continue
        key = item.image if isinstance(item.image, Path) else file
        if key in annotated:
            remarks.append(Remark("file", "another one is of the same image", file))
        else:
            annotated[key] = item
            names |= {name for name in map(_label, records(content, "shapes")) if name}
    listed = _listed_names(tree)
    ordered = [*listed, *sorted(names - set(listed))]
    classes, found, rest = object_classes(ordered, settings)
    ids |= found
    items = list(annotated.values())
    for image in tree.images():
        if tree.root / image not in annotated:
            split = split_of(folder_of(image))
            items.append(Item(stem_of(image), split, tree.root / image, None))
    items.sort(key=lambda item: (item.name, str(item.image)))
    return Source(classes, items, remarks, rest if settings.background else None)


def _listed_names(tree: Tree) -> list[str]:
    if LABELS not in tree.by_base.get(LABELS, []):
        return []
    return [line.strip() for line in tree.text(LABELS).splitlines() if line.strip()]


def _label(shape: Record) -> str | None:
    name = string(shape.get("label"))
    return name.strip() if name else None


def _item(
    tree: Tree,
    file: str,
    content: Record,
    ids: dict[str, int],
    settings: Settings,
    remarks: list[Remark],
) -> Item | None:
    rest = 0 if settings.background else 255
    draw = partial(_draw, tree, file, ids, rest) if content["shapes"] else None
    folder = folder_of(file)
    stem = stem_of(file)
    path = string(content.get("imagePath"))
    same_name = [stem.rpartition("/")[2] + suffix for suffix in IMAGE_SUFFIXES]
    outside = None
    for name in filter(None, [path, *same_name]):
        try:
            place = tree.find(name, [folder], [folder.rpartition("/")[2]])
        except OutsideError as error:
            outside = error
        except FileNotFoundError:
            continue
        else:
            return Item(stem_of(place), split_of(folder), tree.root / place, draw)
    if string(content.get("imageData")):
        return Item(stem, split_of(folder), partial(_embedded, tree, file), draw)
    reason = outside.reason if outside else "no such file"
    remarks.append(Remark("image", reason, f"{file}: {path}"))
    return None


def _embedded(tree: Tree, file: str) -> bytes:
    """The image that the JSON file itself holds."""
    try:
        return base64.b64decode(string(record(tree.json(file)).get("imageData")) or "")
    except (UserError, ValueError) as error:
        raise LeftOutError("not a readable image", f"{file}, imageData") from error


def _draw(
    tree: Tree, file: str, ids: dict[str, int], rest: int, frame: Frame, remarks: list[Remark]
) -> UInt8Array:
    try:
        content = record(tree.json(file))
    except UserError as error:
        raise LeftOutError("its annotation cannot be read", str(error)) from error
    drawn = frame.of(size(content.get("imageHeight"), content.get("imageWidth")), file)
    shapes = []
    for number, entry in enumerate(records(content, "shapes"), start=1):
        where = f"{file}, shape {number}"
        try:
            region = _region(entry, drawn, where)
        except LeftOutError as error:
            remarks.append(Remark("object", error.reason, error.where))
            continue
        class_id = ids.get(_label(entry) or "")
        if class_id is None:
            remarks.append(Remark("object", NO_CLASS, where))
        shapes.append(ignored(region) if class_id is None else Shape(region, class_id))
    return paint(shapes, drawn, rest, file, remarks, by_area=False)


def _region(entry: Record, drawn: Size, where: str) -> Region:
    kind = string(entry.get("shape_type")) or "polygon"
    points = entry.get("points")
    pairs = [numbers(point, 2) for point in points] if isinstance(points, list) else []
    found = [pair for pair in pairs if pair is not None]
    if kind in AREALESS:
        raise LeftOutError(f"a {kind} has no area", where)
    if len(found) != len(pairs) or len(found) < 2:
        raise LeftOutError("an outline of fewer than three points", where)
    if kind == "polygon":
        return outline([value for pair in found for value in pair], drawn, where)
    if kind == "rectangle":
        (x1, y1), (x2, y2) = found[:2]
        return box(x1, y1, x2, y2, drawn, where)
    if kind == "circle":
        return _circle(found[0], found[1], drawn)
    if kind == "mask":
        return _mask(entry.get("mask"), found[0], drawn, where)
    raise LeftOutError("a shape of unknown type", where)


def _circle(center: list[float], edge: list[float], drawn: Size) -> Region:
    rows, columns = np.ogrid[: drawn.height, : drawn.width]
    radius = (center[0] - edge[0]) ** 2 + (center[1] - edge[1]) ** 2
    return from_array((columns + 0.5 - center[0]) ** 2 + (rows + 0.5 - center[1]) ** 2 <= radius)


def _mask(text: object, corner: list[float], drawn: Size, where: str) -> Region:
    """A PNG in base64, whose upper left pixel lies at ``corner``."""
    try:
        held = decode_image(base64.b64decode(string(text) or ""), where)[..., 0] > 0
    except (UserError, ValueError) as error:
        raise LeftOutError("a mask that cannot be read", where) from error
    left, top = round(corner[0]), round(corner[1])
    inside = np.zeros(drawn, bool)
    target = inside[max(top, 0) :, max(left, 0) :]
    part = held[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    target[: part.shape[0], : part.shape[1]] = part
    return from_array(inside)


FORMAT = Format("labelme", "*.json with shapes and imagePath", recognise, read, objects=True)
