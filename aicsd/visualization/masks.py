"""Class ids as pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from aicsd.data.base import Color, UInt8Array
from aicsd.errors import UserError
from aicsd.files import atomic_path
from aicsd.types import IGNORE_INDEX

IGNORED_COLOR = (224, 224, 224)
ROWS_AT_ONCE = 256
"""Of an overlay: as floats, a large image would take many times its memory."""


def color_table(palette: tuple[Color, ...]) -> UInt8Array:
    """(256, 3) RGB of every id; ignored pixels are light grey."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORED_COLOR
    return table


def colorize(mask: UInt8Array, palette: tuple[Color, ...]) -> UInt8Array:
    """(H, W) class ids -> (H, W, 3) RGB; ignored pixels are light grey."""
    colors: UInt8Array = color_table(palette)[mask]
    return colors


def overlay(
    image: UInt8Array, mask: UInt8Array, palette: tuple[Color, ...], opacity: float = 0.5
) -> UInt8Array:
    """(H, W, 3) image with the class colours over it; ignored pixels stay as they are."""
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity is {opacity}; it is 0 to 1")
    result = np.empty_like(image)
    for top in range(0, len(image), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        weight = np.where(mask[rows] == IGNORE_INDEX, 0.0, opacity)[..., None].astype(np.float32)
        mixed = image[rows] * (1 - weight) + colorize(mask[rows], palette) * weight
        result[rows] = np.rint(mixed).astype(np.uint8)
    return result


def encode_ids(mask: UInt8Array, palette: tuple[Color, ...] | None) -> bytes:
    """(H, W) ids as an 8-bit PNG: grey without a palette, else viewers show its colours."""
    picture = Image.fromarray(mask)
    if palette is not None:
        picture.putpalette(color_table(palette).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_ids(mask: UInt8Array, palette: tuple[Color, ...], path: Path) -> None:
    """Write class ids as an 8-bit palette PNG: the values are the ids, viewers show the colours."""
    content = encode_ids(mask, palette)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def encode_image(image: UInt8Array) -> bytes:
    """An (H, W, 3) RGB picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_image(image: UInt8Array, path: Path) -> None:
    """Write an (H, W, 3) RGB picture as PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
