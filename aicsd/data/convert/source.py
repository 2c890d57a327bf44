"""Annotation formats: recognition, and the images and masks that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from aicsd.data.classes_file import distinct_color
from aicsd.data.convert.colors import ClassTable
from aicsd.data.convert.tree import Tree
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.images import Color, UInt8Array
from aicsd.types import IGNORE_INDEX

BACKGROUND = "background"
BACKGROUND_WORDS = frozenset({BACKGROUND, "_background_"})
IGNORED_WORDS = frozenset({"ignored", "ignore", "__ignore__"})


class LeftOutError(Exception):
    """An image or an object cannot be used; the rest of the source can.

    Args:
        reason: a few words that do not depend on the image, by which the report groups.
        where: the file, and the place in it.
    """

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(reason, where)
        self.reason, self.where = reason, where


class Remark(NamedTuple):
    """A line of the report about the source."""

    kind: str
    """``image``, ``object``, ``file`` or ``pixel``: what is left out; ``note``: nothing is."""
    reason: str
    where: str
    number: int = 1
    """Files, objects or pixels."""


class Size(NamedTuple):
    """Pixels of an image or mask."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Frame(NamedTuple):
    """The two sizes of an image file: EXIF may turn it when it is shown."""

    seen: Size
    """Size of the upright image, in viewers and in training."""
    stored: Size
    """Size of the stored pixels."""

    def of(self, declared: Size | None, where: str) -> Size:
        """The size that annotations are drawn at: the declared one, if the image has it.

        Raises:
            LeftOutError: the image has another size than its annotation declares.
        """
        if declared is None or declared == self.seen:
            return self.seen
        if declared != self.stored:
            reason = "its annotation is of another size"
            raise LeftOutError(reason, f"{where}: {declared}, the image is {self.seen}")
        return declared


Draw = Callable[[Frame, list[Remark]], UInt8Array | None]
"""(H, W) class ids of one image, at ``frame.seen`` or ``frame.stored``; None: it has no
annotation. Raises LeftOutError; appends what it leaves out to the list."""


class Item(NamedTuple):
    """One image of a source."""

    name: str
    """Its path in the source without suffix, or another name of its own."""
    split: str | None
    """train, val, test or another split that the source names; None: it names none."""
    image: Path | Callable[[], bytes]
    """Its file, or what gives the bytes of one."""
    draw: Draw | None
    """Makes its mask; None: it has no annotation."""


class Source(NamedTuple):
    """Contents of a folder in one format."""

    classes: Classes
    items: Sequence[Item]
    remarks: list[Remark]
    background: int | None = None
    """Class of an image in which nothing is to be seen; None: the format has none."""


class Settings(NamedTuple):
    """Choices of the user that a format may need."""

    background: bool = True
    """Pixels outside all objects are a class of their own; False: they are ignored."""
    table: ClassTable | None = None
    """Names of the classes, and their colours in the masks."""


class Format(NamedTuple):
    """One kind of export. A new one is a file and a line in ``FORMATS``."""

    name: str
    files: str
    """Files that identify the format, in a few words."""
    recognise: Callable[[Tree], bool]
    read: Callable[[Tree, Settings], Source]
    """Raises UserError where the source as a whole cannot be used."""
    objects: bool = False
    """It outlines objects: the user decides what the pixels outside of them are."""
    takes_table: bool = False
    """The names of its classes may come from a table of the user."""
    general: bool = False
    """Its files may belong to a more special format, which then counts."""


def object_classes(names: Iterable[str], settings: Settings) -> tuple[Classes, dict[str, int], int]:
    """Classes for names of objects: the background first, unless its pixels are ignored.

    Returns:
        Classes, id by name as the source spells it, and the id of pixels outside all objects.

    Raises:
        UserError: more classes than ids.
    """
    ids: dict[str, int] = {}
    kept: list[str] = [BACKGROUND] if settings.background else []
    for name in names:
        word = clean_name(name)
        if word.lower() in IGNORED_WORDS:
            ids[name] = IGNORE_INDEX
            continue
        if word in BACKGROUND_WORDS:
            word = BACKGROUND
        if word not in kept:
            kept.append(word)
        ids[name] = kept.index(word)
    return make_classes(kept), ids, 0 if settings.background else IGNORE_INDEX


def make_classes(names: Sequence[str], palette: Sequence[Color] | None = None) -> Classes:
    """Classes with the given colours, or black for the background and distinct ones elsewhere."""
    require_class_count(len(names))
    if palette is None:
        black = (0, 0, 0)
        palette = [black if n == BACKGROUND else distinct_color(i) for i, n in enumerate(names)]
    return Classes(tuple(names), tuple(palette))


def require_class_count(count: int) -> None:
    """Refuse more classes than 8-bit masks can hold, and none."""
    if not 1 <= count <= IGNORE_INDEX:
        raise UserError(
            f"the source has {count} classes; 1 to {IGNORE_INDEX} are possible "
            f"({IGNORE_INDEX} is the id of ignored pixels)"
        )


def clean_name(name: str) -> str:
    """A class name on one line of printable characters."""
    printable = "".join(character if character.isprintable() else " " for character in name)
    return " ".join(printable.split())[:200] or "unnamed"
