"""YOLO polygons: ``data.yaml``, images, and a text file of normalised outlines for each."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

from aicsd.data.convert.paint import (
    Shape,
    box,
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
from aicsd.data.convert.tree import OutsideError, Tree, folder_of, stem_of
from aicsd.data.convert.values import Record, integer, record
from aicsd.errors import UserError
from aicsd.images import IMAGE_SUFFIXES, UInt8Array

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
BOX_VALUES = 4


def recognise(tree: Tree) -> bool:
    """Whether a YAML file names classes and a split."""
    return bool(data_files(tree))


def yaml_files(tree: Tree) -> list[str]:
    """The first YAML files near the top of the source."""
    near = [file for file in tree.with_suffix(".yaml", ".yml") if file.count("/") <= 1]
    return near[:20]


def data_files(tree: Tree) -> list[str]:
    """The YAML files that describe a data set, of those near the top."""
    found = []
    for file in yaml_files(tree):
        try:
            content = record(tree.yaml(file))
        except UserError:
            continue
        if "names" in content and set(content) & set(SPLITS):
            found.append(file)
    return found


def read(tree: Tree, settings: Settings) -> Source:
    """All images of the splits of the one data file."""
    require_pycocotools("yolo")
    files = data_files(tree)
    if not files:
        for file in yaml_files(tree):
            tree.yaml(file)  # one that is broken is the reason
        raise UserError(f"no data.yaml with names and train or val in {tree.root}")
    if len(files) > 1:
        raise UserError(f"several data files: {', '.join(files)}; keep the one that counts")
    content = record(tree.yaml(files[0]))
    names = _names(content.get("names"), f"{tree.root / files[0]}")
    classes, ids, rest = object_classes(names.values(), settings)
    class_of = {number: ids[name] for number, name in names.items()}
    items: list[Item] = []
    remarks: list[Remark] = []
    for key, split in SPLITS.items():
        for image in _images(tree, files[0], content, key, remarks):
            label = _label_file(tree, image)
            draw = partial(_draw, tree, label, class_of, rest) if label else None
            items.append(Item(stem_of(image), split, tree.root / image, draw))
    return Source(classes, items, remarks, rest if settings.background else None)


def _names(value: Any, where: str) -> dict[int, str]:
    pairs = enumerate(value) if isinstance(value, list) else record(value).items()
    found = {integer(number): str(name) for number, name in pairs}
    table = {number: name for number, name in found.items() if number is not None}
    if not table:
        raise UserError(f"{where}: names gives no class")
    return dict(sorted(table.items()))


def _images(
    tree: Tree, file: str, content: Record, key: str, remarks: list[Remark]
) -> Iterator[str]:
    """Images of one split: of folders, or of text files that list them."""
    value = content.get(key)
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry.strip():
            continue
        place = _inside(tree, file, str(content.get("path") or ""), entry)
        if place is None:
            remarks.append(
                Remark("file", "no such folder or list of images", f"{file}, {key}: {entry}")
            )
        elif place.endswith(".txt"):
            yield from _listed(tree, place, remarks)
        else:
            yield from tree.images(place)


def _inside(tree: Tree, file: str, root: str, entry: str) -> str | None:
    """Folder or list of a split in the source, wherever its author had it.

    Exports write ``../train/images`` for a folder beside the data file, and ``path`` is often the
    author's own; what leads nowhere is tried without them.
    """
    words = entry.strip().replace("\\", "/")
    bare = words
    while bare.startswith(("../", "./")):
        bare = bare.partition("/")[2]
    for start in (posixpath.join(folder_of(file), root), folder_of(file), ""):
        for tail in (words, bare):
            place = posixpath.normpath(posixpath.join(start, tail)).rstrip("/")
            place = "" if place == "." else place
            if place.startswith(("/", "..")):
                continue
            if tree.has_folder(place) if place else tree.files:
                return place
            if place in tree.by_base.get(place.rpartition("/")[2], []):
                return place
    return None


def _listed(tree: Tree, place: str, remarks: list[Remark]) -> Iterator[str]:
    for line in tree.text(place).splitlines():
        name = line.strip()
        if not name:
            continue
        where = f"{place}, {name}"
        try:
            found = tree.find(name, ["", folder_of(place)])
        except OutsideError as error:
            remarks.append(Remark("image", error.reason, where))
        except FileNotFoundError:
            remarks.append(Remark("image", "no such file", where))
        else:
            if found.lower().endswith(IMAGE_SUFFIXES):
                yield found
            else:
                remarks.append(Remark("image", "no image file", where))


def _label_file(tree: Tree, image: str) -> str | None:
    """``labels/x.txt`` for ``images/x.jpg``, at the last folder of that name; or beside it."""
    parts = image.split("/")
    stem = f"{stem_of(parts[-1])}.txt"
    places = [image]
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            places.insert(0, "/".join([*parts[:index], "labels", *parts[index + 1 :]]))
            break
    for place in places:
        name = posixpath.join(folder_of(place), stem)
        if name in tree.by_base.get(stem, []):
            return name
    return None


def _draw(
    tree: Tree, label: str, class_of: dict[int, int], rest: int, frame: Frame, remarks: list[Remark]
) -> UInt8Array | None:
    try:
        lines = [line.split() for line in tree.text(label).splitlines() if line.strip()]
    except UserError as error:
        raise LeftOutError("its label file cannot be read", str(error)) from error
    if not lines:
        return None
    shapes = []
    for number, words in enumerate(lines, start=1):
        where = f"{label}, line {number}"
        try:
            shapes.append(_shape(words, class_of, frame.seen, where, remarks))
        except LeftOutError as error:
            remarks.append(Remark("object", error.reason, error.where))
    return paint(shapes, frame.seen, rest, label, remarks, by_area=True)


def _shape(
    words: list[str], class_of: dict[int, int], size: Size, where: str, remarks: list[Remark]
) -> Shape:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise LeftOutError("a line that is not a list of numbers", where) from error
    if not all(math.isfinite(value) and abs(value) < 1e6 for value in values):
        raise LeftOutError("a line that is not a list of numbers", where)
    sides = (size.width, size.height)
    points = [value * sides[index % 2] for index, value in enumerate(values[1:])]
    if len(points) == BOX_VALUES:
        x, y, width, height = points
        remarks.append(Remark("object", "a box without outline", where))
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return ignored(box(*corners, size, where))
    region = outline(points, size, where)
    class_id = class_of.get(integer(values[0]) if values else None)  # type: ignore[arg-type]
    if class_id is None:
        remarks.append(Remark("object", "no class", where))
        return ignored(region)
    return Shape(region, class_id)


FORMAT = Format("yolo", "data.yaml with names and train or val", recognise, read, objects=True)
