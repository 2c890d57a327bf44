"""PASCAL VOC's layout with palette masks, and CVAT's masks in it with a ``labelmap.txt``."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

from aicsd.data.convert.colors import ColorReader, parse_table
from aicsd.data.convert.picture import draw_colors, draw_ids, kind_of
from aicsd.data.convert.source import (
    IGNORED_WORDS,
    Draw,
    Format,
    Frame,
    Item,
    Remark,
    Settings,
    Source,
    clean_name,
    make_classes,
)
from aicsd.data.convert.tree import Tree, folder_of, split_of, stem_of
from aicsd.data.voc import NAMES, voc_color
from aicsd.errors import UserError
from aicsd.images import UInt8Array
from aicsd.types import IGNORE_INDEX

MASK_FOLDERS = ("SegmentationClass", "SegmentationClassPNG")
LABEL_MAP = "labelmap.txt"
CLASS_NAMES = "class_names.txt"
"""Names that labelme2voc writes, one a line, in the order of the ids."""
NO_ID = "__ignore__"
"""Its first line, which stands for the id -1."""
LISTS = "ImageSets/Segmentation"
OUTLINE = (224, 224, 192)
"""VOC's colour of pixels that are ignored."""
BOTH = "trainval"
"""VOC's list of train and val together, of no use beside these."""


def mask_folders(tree: Tree) -> list[str]:
    """Folders of masks, wherever they are."""
    found = set()
    for file in tree.with_suffix(".png"):
        parts = file.split("/")[:-1]
        places = [index for index, part in enumerate(parts) if part in MASK_FOLDERS]
        if places:
            found.add("/".join(parts[: places[0] + 1]))
    return sorted(found)


def label_map(tree: Tree) -> str | None:
    """CVAT's table of labels and colours."""
    return min(tree.by_base.get(LABEL_MAP, []), default=None)


def recognise_voc(tree: Tree) -> bool:
    """Whether there are masks in VOC's layout and no label map."""
    return bool(mask_folders(tree)) and label_map(tree) is None


def recognise_cvat(tree: Tree) -> bool:
    """Whether there are masks in VOC's layout and a label map."""
    return bool(mask_folders(tree)) and label_map(tree) is not None


def read_cvat(tree: Tree, settings: Settings) -> Source:  # noqa: ARG001
    """Masks in the colours of the label map, or of its line numbers; the rest is ignored."""
    file = label_map(tree)
    if file is None:
        raise UserError(f"no {LABEL_MAP} in {tree.root}")
    table = parse_table(tree.text(file), str(tree.root / file), IGNORED_WORDS)
    palette = table.palette()
    if palette is None:
        raise UserError(f"{tree.root / file} gives no colours (label:r,g,b:parts:actions)")
    classes = make_classes([clean_name(name) for name in table.names], palette)
    ids = dict(enumerate(table.ids))
    items, remarks = _items(tree, partial(_draw, False, ids, ColorReader(table.colors)))
    return Source(classes, items, remarks)


def read_voc(tree: Tree, settings: Settings) -> Source:  # noqa: ARG001
    """Masks of ids with VOC's classes, or those of ``class_names.txt``."""
    names, ids = _classes(tree)
    colors = [(voc_color(stored), class_id) for stored, class_id in ids.items()]
    first = {class_id: color for color, class_id in reversed(colors)}
    classes = make_classes(names, [first[number] for number in range(len(names))])
    reader = ColorReader([*colors, (OUTLINE, IGNORE_INDEX)])
    items, remarks = _items(tree, partial(_draw, True, ids, reader))
    return Source(classes, items, remarks)


def _classes(tree: Tree) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the classes, and class id, or ``IGNORE_INDEX``, by the id in the masks."""
    files = tree.by_base.get(CLASS_NAMES, [])
    if not files:
        return NAMES, {number: number for number in range(len(NAMES))}
    lines = [line.strip() for line in tree.text(min(files)).splitlines() if line.strip()]
    if lines[:1] == [NO_ID]:
        del lines[0]
    words = [None if line.lower() in IGNORED_WORDS else clean_name(line) for line in lines]
    names = tuple(dict.fromkeys(word for word in words if word is not None))
    ids = [IGNORE_INDEX if word is None else names.index(word) for word in words]
    return names, dict(enumerate(ids))


def _items(tree: Tree, draw: partial[UInt8Array]) -> tuple[list[Item], list[Remark]]:
    """Every image that a list names or a mask belongs to."""
    folders = mask_folders(tree)
    if len(folders) != 1:
        there = f"several folders of masks: {', '.join(folders)}; give one's parent as the source"
        missing = f"no folder {MASK_FOLDERS[0]} with masks in {tree.root}"
        raise UserError(there if folders else missing)
    masks = folders[0]
    top = folder_of(masks)
    mask_of = {stem_of(f)[len(masks) + 1 :]: f for f in tree.with_suffix(".png", below=masks)}
    images = _images_by_stem(tree, masks)
    items: list[Item] = []
    remarks: list[Remark] = []
    for name, split in _splits(tree, top, mask_of).items():
        image = _image(images, name, remarks)
        if image is not None:
            mask = mask_of.get(name)
            made: Draw | None = partial(draw, tree.root / mask) if mask else None
            items.append(Item(stem_of(image), split, tree.root / image, made))
    return items, remarks


def _images_by_stem(tree: Tree, masks: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    objects = masks.replace("SegmentationClass", "SegmentationObject")
    for file in tree.images():
        if not file.startswith((f"{masks}/", f"{objects}/", f"{masks}Visualization/")):
            found[PurePosixPath(file).stem].append(file)
    return found


def _image(images: dict[str, list[str]], name: str, remarks: list[Remark]) -> str | None:
    """The one image whose path ends as the name does; those in JPEGImages count first."""
    named = images.get(PurePosixPath(name).name, [])
    found = [file for file in named if f"/{stem_of(file)}".endswith(f"/{name}")]
    found = [f for f in found if "JPEGImages" in f.split("/")] or found
    if len(found) != 1:
        reason = "several images of its name" if found else "no such file (export with images)"
        remarks.append(Remark("image", reason, name))
        return None
    return found[0]


def _splits(tree: Tree, top: str, masks: dict[str, str]) -> dict[str, str | None]:
    """Split by image: of the lists, and None for images with a mask that no list names."""
    folder = f"{top}/{LISTS}" if top else LISTS
    lists = {stem_of(f).rpartition("/")[2]: f for f in tree.with_suffix(".txt", below=folder)}
    if {"train", "val"} <= set(lists):
        lists.pop(BOTH, None)
    found: dict[str, str | None] = {}
    for name, file in lists.items():
        split = "train" if name == BOTH else split_of(name)
        for line in tree.text(file).splitlines():
            whole = line.strip().strip('"')  # names of CVAT may hold spaces; VOC has more columns
            if whole:
                found.setdefault(whole if whole in masks else whole.split()[0], split)
    return found | {name: None for name in masks if name not in found}


def _draw(
    by_id: bool,
    ids: dict[int, int],
    reader: ColorReader,
    mask: Path,
    frame: Frame,
    remarks: list[Remark],
) -> UInt8Array:
    kind = kind_of(mask, str(mask))
    if kind == "grey" or (by_id and kind == "palette"):
        return draw_ids(mask, ids, frame, remarks)
    return draw_colors(mask, reader, str(mask), remarks)


FORMAT = Format(
    "voc", "SegmentationClass/*.png and JPEGImages, as PASCAL VOC", recognise_voc, read_voc
)
CVAT = Format(
    "cvat",
    "SegmentationClass/*.png and labelmap.txt, as CVAT's segmentation mask",
    recognise_cvat,
    read_cvat,
)
