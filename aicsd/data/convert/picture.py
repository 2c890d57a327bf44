"""Image and mask files of a source: upright, and one reason for each that is of no use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from aicsd.data.convert.colors import ColorReader
from aicsd.data.convert.source import Frame, LeftOutError, Remark, Size
from aicsd.errors import UserError
from aicsd.images import (
    ONE_CHANNEL,
    ORIENTATION_TAG,
    IntArray,
    UInt8Array,
    read_colors,
    read_image,
    read_values,
)
from aicsd.types import IGNORE_INDEX

Kind = Literal["grey", "palette", "colors"]
UNREADABLE = "a mask that cannot be read"
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's names of the formats that training reads, and their suffixes."""
TRANSPOSED = 5
"""First EXIF orientation in which rows and columns are exchanged."""
_TURNS: dict[int, Callable[[UInt8Array], UInt8Array]] = {
    2: lambda mask: mask[:, ::-1],
    3: lambda mask: mask[::-1, ::-1],
    4: lambda mask: mask[::-1],
    5: lambda mask: mask.T,
    6: lambda mask: mask.T[:, ::-1],
    7: lambda mask: mask.T[::-1, ::-1],
    8: lambda mask: mask.T[::-1],
}
"""EXIF orientation -> from the stored rows and columns to those that are seen."""


def inspect_image(path: Path, where: str) -> tuple[Frame, int, str]:
    """Decode an image: its sizes, EXIF orientation, and a suffix that fits its content.

    Raises:
        LeftOutError: it is broken, too large, or of a format that training does not read.
    """
    with _left_out("an image that cannot be read", path, where):
        seen = Size(*read_image(path).shape[:2])
    kind, orientation = _header(path)
    stored = Size(seen.width, seen.height) if orientation >= TRANSPOSED else seen
    suffixes = SUFFIXES.get(kind, (path.suffix,))
    suffix = path.suffix if path.suffix.lower() in suffixes else suffixes[0]
    return Frame(seen, stored), orientation, suffix


def _header(path: Path) -> tuple[str, int]:
    """Format and EXIF orientation, 1 to 8, of an image that was read."""
    try:
        with PILImage.open(path) as file:
            orientation = file.getexif().get(ORIENTATION_TAG, 1)
            kind = "JPEG" if file.format == "MPO" else str(file.format)
    except Exception:
        return "", 1  # as readers treat invalid EXIF
    return kind, orientation if orientation in _TURNS else 1


def make_upright(
    mask: UInt8Array, frame: Frame, orientation: int, where: str
) -> tuple[UInt8Array, list[Remark]]:
    """Turn a mask as its image is turned when it is shown, if it was drawn on the stored pixels.

    A mask of the seen size is taken as drawn on what is seen. Equal sizes leave that open, which
    the remark reports.

    Raises:
        LeftOutError: the mask has neither size.
    """
    size = Size(*mask.shape)
    if size == frame.seen:
        if size != frame.stored or orientation not in _TURNS:
            return mask, []
        reason = "EXIF turns the image: the mask is taken as drawn on it upright"
        return mask, [Remark("note", reason, where)]
    if size != frame.stored or orientation not in _TURNS:
        raise LeftOutError("its mask is of another size", f"{where}: {size} and {frame.seen}")
    turned = np.ascontiguousarray(_TURNS[orientation](mask))
    return turned, [Remark("note", "EXIF turns the image: its mask was turned with it", where)]


def kind_of(mask: Path, where: str) -> Kind:
    """Whether a mask has one channel, colours behind one channel, or several channels.

    Raises:
        LeftOutError: it cannot be read.
    """
    with _left_out(UNREADABLE, mask, where):
        try:
            with PILImage.open(mask) as file:
                mode = file.mode
        except Exception as error:  # decoders raise nearly anything
            raise UserError(f"{mask} is not a readable image") from error
    return "palette" if mode == "P" else "grey" if mode in ONE_CHANNEL else "colors"


def ids_in(mask: Path, where: str) -> IntArray:
    """(H, W) values of a mask of one channel, the indices where it has a palette.

    Raises:
        LeftOutError: it cannot be read, is stored with loss, or has several channels.
    """
    with _left_out(UNREADABLE, mask, where):
        return read_values(mask)


def colors_in(mask: Path, where: str) -> UInt8Array:
    """(H, W, 3) colours of a mask of any kind, those of its palette if it has one.

    Raises:
        LeftOutError: it cannot be read, or is stored with loss.
    """
    with _left_out(UNREADABLE, mask, where):
        return read_colors(mask)


@contextmanager
def _left_out(reason: str, path: Path, where: str) -> Iterator[None]:
    """A UserError as something left out; it names ``where`` in place of ``path``."""
    try:
        yield
    except UserError as error:
        raise LeftOutError(reason, str(error).replace(str(path), where)) from error


def draw_colors(mask: Path, reader: ColorReader, where: str, remarks: list[Remark]) -> UInt8Array:
    """(H, W) class ids of a mask of colours; a colour without class is ignored and remarked."""
    found, unknown = reader.read(colors_in(mask, where))
    remarks += [Remark("pixel", reason, where, count) for reason, count in unknown]
    return found


def draw_ids(
    mask: Path,
    ids: dict[int, int],
    frame: Frame,  # noqa: ARG001
    remarks: list[Remark],
) -> UInt8Array:
    """(H, W) class ids of a mask file of ids, for formats whose masks hold nothing else.

    Raises:
        LeftOutError: as :func:`ids_in`.
    """
    return map_ids(ids_in(mask, str(mask)), ids, str(mask), remarks)


def map_ids(
    mask: npt.NDArray[Any],
    ids: dict[int, int],
    where: str,
    remarks: list[Remark],
    word: str | None = None,
) -> UInt8Array:
    """(H, W) stored ids -> class ids; an id that is not in ``ids`` is ignored and remarked.

    Args:
        mask: the stored ids.
        ids: class id, or ``IGNORE_INDEX``, by stored id.
        where: the mask, for the remark.
        remarks: gets one for every id without class.
        word: what the ids count, where their values differ from image to image and the remark
            does better without; 255 then is an id as any other.
    """
    values, inverse, counts = np.unique(mask, return_inverse=True, return_counts=True)
    lookup = np.array([ids.get(int(value), IGNORE_INDEX) for value in values], np.uint8)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in ids and (word or value != IGNORE_INDEX):
            reason = f"a {word} without class" if word else f"id {int(value)} has no class"
            remarks.append(Remark("pixel", reason, where, count))
    return lookup[inverse.reshape(mask.shape)]
