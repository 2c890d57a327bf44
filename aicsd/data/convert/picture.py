"""Image and mask files of a source: bounded, upright, and one reason for each that is no use."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from aicsd.data.convert.colors import ColorReader
from aicsd.data.convert.source import Frame, LeftOutError, Remark, Size
from aicsd.errors import UserError
from aicsd.images import ORIENTATION_TAG, UInt8Array, read_image
from aicsd.types import IGNORE_INDEX

MAX_PIXELS = 100_000_000
"""Pixels of an image; a decoded one takes three bytes for each, and training several times that."""
TOO_LARGE = f"more than {MAX_PIXELS // 10**6} million pixels"
MAX_BYTES = 1 << 30
"""Bytes of an image file."""
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
}  # fmt: skip
"""What Pillow calls the formats that training reads, and the suffixes that they go by."""
GREY = ("L", "1", "I", "I;16", "I;16B")
"""Modes of Pillow with one channel and no palette."""
UNREADABLE = (
    OSError, UnidentifiedImageError, SyntaxError, ValueError, PILImage.DecompressionBombError,
    struct.error, MemoryError,
)  # fmt: skip
_TURNS = {
    2: lambda mask: mask[:, ::-1],
    3: lambda mask: mask[::-1, ::-1],
    4: lambda mask: mask[::-1],
    5: lambda mask: mask.T,
    6: lambda mask: mask.T[:, ::-1],
    7: lambda mask: mask.T[::-1, ::-1],
    8: lambda mask: mask.T[::-1],
}
"""EXIF orientation -> from the stored rows and columns to those that are seen."""


def look_at(path: Path, where: str) -> tuple[Frame, int, str]:
    """Decode an image: its sizes, EXIF orientation, and a suffix that fits its content.

    Raises:
        LeftOutError: it is too large, broken, or of a format that training does not read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise LeftOutError(f"the file is larger than {MAX_BYTES >> 20} MiB", where)
    try:
        with PILImage.open(path) as file:
            stored = Size(file.height, file.width)
            kind = str(file.format)
            orientation = int(file.getexif().get(ORIENTATION_TAG, 1))
    except PILImage.DecompressionBombError as error:  # a bound of Pillow's, above ours
        raise LeftOutError(TOO_LARGE, where) from error
    except UNREADABLE as error:
        raise LeftOutError("not a readable image", where) from error
    if stored.height * stored.width > MAX_PIXELS:
        raise LeftOutError(TOO_LARGE, f"{where}: {stored}")
    if kind not in SUFFIXES:
        raise LeftOutError(f"images of the format {kind} cannot be trained on", where)
    try:
        height, width = read_image(path).shape[:2]
    except UserError as error:
        raise LeftOutError("not a readable image", where) from error
    suffix = path.suffix if path.suffix.lower() in SUFFIXES[kind] else SUFFIXES[kind][0]
    return Frame(Size(height, width), stored), orientation, suffix


def make_upright(
    mask: UInt8Array, frame: Frame, orientation: int, where: str
) -> tuple[UInt8Array, list[Remark]]:
    """Turn a mask as its image is turned when it is shown, if it was drawn on the stored pixels.

    A mask of the seen size is taken as drawn on what is seen; where both sizes are equal, nothing
    tells the two apart, and the remark says so.

    Raises:
        LeftOutError: the mask has neither size.
    """
    height, width = mask.shape
    size = Size(height, width)
    if size == frame.seen:
        if size != frame.stored or orientation not in _TURNS:
            return mask, []
        reason = "EXIF turns the image: the mask is taken as drawn on it upright"
        return mask, [Remark("note", reason, where)]
    if size != frame.stored or orientation not in _TURNS:
        raise LeftOutError("its mask is of another size", f"{where}: {size} and {frame.seen}")
    turned = np.ascontiguousarray(_TURNS[orientation](mask))
    return turned, [Remark("note", "EXIF turns the image: its mask was turned with it", where)]


def load_mask(file: Path | io.BytesIO, where: str) -> PILImage.Image:
    """A mask of ids or colours.

    Raises:
        LeftOutError: a file that is broken, too large, or stored with loss.
    """
    try:
        image = PILImage.open(file)
        if image.format in ("JPEG", "MPO"):
            raise LeftOutError("a JPEG mask does not keep its values", where)
        if image.width * image.height > MAX_PIXELS:
            raise LeftOutError("more pixels in the mask than an image may have", where)
        image.load()
    except UNREADABLE as error:
        raise LeftOutError("not a readable mask", where) from error
    return image


def has_ids(mask: PILImage.Image) -> bool:
    """Whether a mask has one channel; a palette counts as one."""
    return mask.mode in (*GREY, "P")


def ids_in(mask: PILImage.Image) -> npt.NDArray[Any]:
    """(H, W) values of a mask of one channel, the indices where it has a palette."""
    return np.asarray(mask)


def colors_in(mask: PILImage.Image) -> UInt8Array:
    """(H, W, 3) colours of a mask of any kind, those of its palette if it has one."""
    return np.asarray(mask.convert("RGB"))


def draw_colors(
    mask: PILImage.Image, reader: ColorReader, where: str, remarks: list[Remark]
) -> UInt8Array:
    """(H, W) class ids of a mask of colours; a colour without class is ignored and remarked."""
    found, unknown = reader.read(colors_in(mask))
    remarks += [Remark("pixel", reason, where, count) for reason, count in unknown]
    return found


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
    """  # fmt: skip
    values, inverse, counts = np.unique(mask, return_inverse=True, return_counts=True)
    lookup = np.array([ids.get(int(value), IGNORE_INDEX) for value in values], np.uint8)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in ids and (word or value != IGNORE_INDEX):
            reason = f"a {word} without class" if word else f"id {int(value)} has no class"
            remarks.append(Remark("pixel", reason, where, count))
    return lookup[inverse.reshape(mask.shape)]


def draw_ids(
    mask: Path,
    ids: dict[int, int],
    frame: Frame,  # noqa: ARG001
    remarks: list[Remark],
) -> UInt8Array:
    """(H, W) class ids of a mask file of ids, for formats whose masks hold nothing else.

    Raises:
        LeftOutError: as :func:`load_mask`, and for a mask of colours.
    """
    stored = load_mask(mask, str(mask))
    if not has_ids(stored):
        raise LeftOutError("a mask of colours where ids are expected", str(mask))
    return map_ids(ids_in(stored), ids, str(mask), remarks)
