"""A user's own data: ``images/<split>``, ``masks/<split>``, ``classes.txt`` or ``classes.csv``.

With ``classes.txt`` (one name a line, optionally followed by a colour: ``road 128 64 128``), masks
hold class ids in that order; 255 is ignored. With ``classes.csv`` (``name,r,g,b``) they hold
colours. The split ``unlabelled`` has images only; ``train+unlabelled`` is both splits.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aicsd.data.classes_file import (
    IGNORED,
    TABLE,
    find_classes,
    read_classes,
    read_color_table,
)
from aicsd.data.entry import DatasetEntry
from aicsd.data.file_dataset import (
    FileDataset,
    LayoutError,
    Pair,
    and_more,
    only_mask,
    readable,
    require_folder,
    spare_note,
)
from aicsd.data.masks import ColorMasks, IdMasks, ReadMask
from aicsd.data.protocol import Classes
from aicsd.errors import UserError, suggest
from aicsd.images import IMAGE_SUFFIXES, is_image, list_images
from aicsd.types import IGNORE_INDEX

UNLABELLED = "unlabelled"
IMAGES = "images/{split}"
MASKS = "masks/{split}/{stem}"
OTHER = "other"
"""Key of ``mask_values`` for every value that is not listed."""
HINT = (
    "; if the values mean something else, say what: data.options mask_values, for example "
    "{mask_values: {0: CLASS, 255: CLASS, other: ignored}}"
)


def open_folder(
    root: Path,
    split: str,
    *,
    classes: str | None = None,
    images: str = IMAGES,
    masks: str = MASKS,
    nested: bool = False,
    mask_values: Mapping[Any, Any] | None = None,
    nearest: bool = False,
) -> FileDataset:
    """One split below ``root``, or several joined by ``+``; ``unlabelled`` needs no masks.

    Args:
        root: folder of the dataset.
        split: names of splits.
        classes: file that names the classes, from ``root``.
        images: folder of the images, from ``root``; ``{split}`` is filled in.
        masks: path of the mask of an image, from ``root``, or its name alone; ``{split}`` and
            ``{stem}``, the image's name without suffix, are filled in. Without a suffix it may be
            of any image format.
        nested: take the images in folders below too; masks lie in folders of the same names.
        mask_values: class name, class id or ``ignored`` by the value that masks hold; the key
            ``other`` is every other value.
        nearest: take the nearest value or colour that is listed, as JPEG masks need.

    Raises:
        UserError: a file or folder that is not there, an image without a mask or with two, or an
            option that makes no sense.
    """
    known, read_mask = _labels(root, classes, mask_values, nearest)
    layout = _layout(root, images, masks, nested)
    parts = {part: layout.pairs(part) for part in split.split("+")}
    names, pairs, notes = [], [], []
    for part, (found, remarks) in parts.items():
        prefix = f"{part}/" if len(parts) > 1 else ""  # files of two splits may have one name
        names += [f"{prefix}{layout.stem(pair.image, part)}" for pair in found]
        pairs += found
        notes += remarks
    return FileDataset(pairs, known, read_mask, names=names, notes=notes)


def folder_images(
    root: Path,
    split: str,
    *,
    classes: str | None = None,  # noqa: ARG001
    images: str = IMAGES,
    masks: str = MASKS,
    nested: bool = False,
    mask_values: Mapping[Any, Any] | None = None,  # noqa: ARG001
    nearest: bool = False,  # noqa: ARG001
) -> list[Path]:
    """Images of one split, or of several joined by ``+``, which need no masks."""
    layout = _layout(root, images, masks, nested)
    return [path for part in split.split("+") for path in layout.images(part)]


def _labels(
    root: Path, given: str | None, values: Mapping[Any, Any] | None, nearest: bool
) -> tuple[Classes, ReadMask]:
    path = find_classes(root, given)
    if path.suffix == ".csv":
        if values is not None:
            raise UserError(f"data.options.mask_values: {path} already defines the values of masks")
        table = read_color_table(path)
        return table.classes, ColorMasks(table.colors, path, nearest)
    classes = read_classes(path)
    count = len(classes.names)
    if values is None:
        if nearest:
            raise UserError(
                f"data.options.nearest needs mask_values, or masks in colours and a {TABLE}"
            )
        return classes, IdMasks(count, hint=HINT)
    ids, other = _mask_values(values, classes)
    if nearest and other is not None:
        raise UserError(
            f"data.options: nearest takes the nearest of mask_values, and leaves none for {OTHER}; "
            "give one of them"
        )
    return classes, IdMasks(count, ids, other=other, nearest=nearest)


def _mask_values(values: Mapping[Any, Any], classes: Classes) -> tuple[dict[int, int], int | None]:
    where = "data.options.mask_values"
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{where} must be a mapping such as {{0: background, 255: object}}")
    ids: dict[int, int] = {}
    other = None
    for value, name in values.items():
        class_id = _class_id(name, classes)
        if value == OTHER:
            other = class_id
        elif re.fullmatch(r"-?\d{1,9}", str(value)):
            ids[int(value)] = class_id
        else:
            raise UserError(f"{where}: {value!r} must be a whole number or {OTHER}")
    if not ids:
        raise UserError(f"{where} lists no value")
    return ids, other


def _class_id(name: Any, classes: Classes) -> int:
    if name in classes.names:
        return classes.names.index(name)
    if name in (IGNORED, IGNORE_INDEX):
        return IGNORE_INDEX
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(classes.names):
        return name
    raise UserError(
        f"data.options.mask_values: no class {name!r}{suggest(name, [*classes.names, IGNORED])}"
    )


def _layout(root: Path, images: str, masks: str, nested: bool) -> _Layout:
    for name, template, words in (
        ("images", images, ["split"]),
        ("masks", masks, ["split", "stem"]),
    ):
        if not isinstance(template, str):
            raise UserError(f"data.options.{name} is {template!r}; it must be a path")
        for word in re.findall(r"\{(.*?)\}", template):
            if word not in words:
                raise UserError(f"data.options.{name}: {{{word}}} is unknown{suggest(word, words)}")
    if "{stem}" not in masks:
        raise UserError(f"data.options.masks is {masks!r}; it must contain {{stem}}")
    if not isinstance(nested, bool):
        raise UserError(f"data.options.nested is {nested!r}; it must be true or false")
    if "/" not in masks:
        masks = f"{PurePosixPath(MASKS).parent}/{masks}"
    return _Layout(root, images, masks, nested)


@dataclass(frozen=True)
class _Layout:
    """Places of images and masks."""

    root: Path
    image_folder: str
    mask_path: str
    nested: bool

    def images(self, split: str) -> list[Path]:
        """Image files of a split, sorted by name; none is an error."""
        folder = require_folder(self._folder(split))
        found = sorted(_images_below(folder)) if self.nested else list_images(folder)
        found = self._without_masks(found, split)
        if not found:
            below = "" if self.nested else _below(folder)
            raise LayoutError(
                f"no images in {folder} (looked for {' '.join(IMAGE_SUFFIXES)}){below}"
            )
        return found

    def pairs(self, split: str) -> tuple[list[Pair], list[str]]:
        """Images with their masks, and what is left out."""
        images = self.images(split)
        notes = []
        folder = self._folder(split)
        if not self.nested and (below := _below(folder)):
            notes.append(f"images in folders of {folder} are left out{below}")
        if split == UNLABELLED:
            return [Pair(image, None) for image in images], notes
        pattern = PurePosixPath(self.mask_path.replace("{split}", split)).name
        files = _Files(pattern)
        found: dict[Path, list[Path]] = {}
        for image in images:
            require_folder(self._mask(image, split).parent)
            found[image] = files.named(self._mask(image, split))
        missing = [image for image, masks in found.items() if not masks]
        if missing:
            wanted = self._mask(missing[0], split)
            raise LayoutError(
                f"no mask for {missing[0]}{and_more(len(missing) - 1, 'images')} in "
                f"{wanted.parent}; a mask has "
                + ("its image's name" if pattern == "{stem}" else f"the name {wanted.name}")
            )
        pairs = [Pair(image, only_mask(image, masks)) for image, masks in found.items()]
        used = {pair.mask for pair in pairs}
        # beside their images, images may look like masks
        spare = [path for path in files.matching() if path not in used and path not in found]
        return pairs, notes + spare_note(spare)

    def stem(self, image: Path, split: str) -> str:
        """Name of an image in its split: its path without suffix."""
        return image.relative_to(self._folder(split)).with_suffix("").as_posix()

    def _folder(self, split: str) -> Path:
        return self.root / self.image_folder.replace("{split}", split)

    def _mask(self, image: Path, split: str) -> Path:
        """Path of the mask of an image, without suffix if the layout names none."""
        stem = PurePosixPath(self.stem(image, split))
        template = PurePosixPath(self.mask_path.replace("{split}", split))
        folder = str(template.parent).replace("{stem}", stem.name)
        return self.root / folder / stem.parent / template.name.replace("{stem}", stem.name)

    def _without_masks(self, images: list[Path], split: str) -> list[Path]:
        """``images`` without those that are the mask of another: both may be in one folder."""
        if not PurePosixPath(self.mask_path).is_relative_to(self.image_folder):
            return images
        masks = {self._mask(image, split) for image in images}
        return [path for path in images if not masks & {path, path.with_suffix("")}]


class _Files:
    """Files of mask folders, each folder listed once.

    Args:
        pattern: name of a mask, with ``{stem}``.
    """

    def __init__(self, pattern: str) -> None:
        self.has_suffix = PurePosixPath(pattern).suffix.lower() in IMAGE_SUFFIXES
        self.pattern = pattern
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def named(self, path: Path) -> list[Path]:
        """Files at ``path``, or with any suffix of an image there."""
        if path.parent not in self._folders:
            by_name: dict[str, list[Path]] = {}
            for file in list_images(path.parent):
                by_name.setdefault(self._name(file), []).append(file)
            self._folders[path.parent] = by_name
        return self._folders[path.parent].get(path.name, [])

    def matching(self) -> Iterator[Path]:
        """Every file of the folders listed so far that has the name of a mask."""
        # only the stem varies; other characters stand for themselves
        pattern = "*".join(map(_literal, self.pattern.split("{stem}")))
        for by_name in self._folders.values():
            for name, files in by_name.items():
                if fnmatch.fnmatchcase(name, pattern):
                    yield from files

    def _name(self, file: Path) -> str:
        return file.name if self.has_suffix else file.stem


def _literal(text: str) -> str:
    return re.sub(r"[*?\[]", r"[\g<0>]", text)


def _images_below(folder: Path) -> Iterator[Path]:
    """Images in ``folder`` and all folders below, also behind links, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in files if is_image(path := Path(place, name)))


def _below(folder: Path) -> str:
    """A remark on images in folders of ``folder``; "" without any."""
    inside = [path for path in _images_below(folder) if path.parent != folder]
    if not inside:
        return ""
    return (
        f"; {len(inside)} are in folders below, such as {readable(str(min(inside)))}: "
        "data.options nested: true takes them"
    )


FOLDER = DatasetEntry(
    open_folder,
    "ROOT/images/<split>/*, ROOT/masks/<split>/*.png and ROOT/classes.txt (one name per line)",
    folder_images,
)
