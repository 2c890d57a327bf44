"""Masks of SBD, from the one field of MATLAB files (MAT 5) that holds them.

A reader of its own: the files come from the web, and that of SciPy reads out of bounds in damaged
ones, which ends the process.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aicsd.errors import UserError, one_line
from aicsd.images import MAX_PIXELS, UInt8Array
from aicsd.types import IGNORE_INDEX

HEADER = 128
"""Bytes before the first element."""
MATRIX, COMPRESSED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Kind of an element -> its dtype, without byte order."""
STRUCT = 2
NUMERIC = range(6, 16)
"""Classes of matrices that hold numbers."""
VARIABLE, FIELD = b"GTcls", b"Segmentation"
MAX_FILE = 2**26
"""Bytes of a file, as it is and unpacked; the largest mask of SBD has 250 kB."""


class _DamagedError(Exception):
    """The file is not a MAT file with the expected field."""


class _Element(NamedTuple):
    """A tagged piece of a MAT file."""

    kind: int
    content: memoryview


def read_sbd_mask(path: Path) -> UInt8Array:
    """(H, W) uint8 ids of ``GTcls.Segmentation``, the struct of SBD (Hariharan et al., 2011).

    Raises:
        UserError: no such file, another or a damaged one, or numbers that are no ids.
    """
    if not path.is_file():
        raise UserError(f"no file at {path}")
    try:
        if path.stat().st_size > MAX_FILE:
            raise _DamagedError(f"it has more than {MAX_FILE >> 20} MB")
        mask = _segmentation(path.read_bytes())
    except (_DamagedError, OSError, zlib.error) as error:
        reason = one_line(error, 500)
        raise UserError(
            f"{path} is not a readable SBD mask (empty, truncated or without GTcls.Segmentation): "
            f"{reason}"
        ) from error
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise UserError(
            f"{path}: GTcls.Segmentation is {mask.dtype} of shape {mask.shape}; it must be whole "
            "numbers of shape (H, W)"
        )
    if mask.min(initial=0) < 0 or mask.max(initial=0) > IGNORE_INDEX:
        raise UserError(f"{path}: class ids {mask.min()} to {mask.max()}; ids are 0 to 255")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _segmentation(data: bytes) -> npt.NDArray[np.generic]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if order is None:
        raise _DamagedError("it has no header of MAT 5")
    for element in _elements(memoryview(data)[HEADER:], order):
        if element.kind == COMPRESSED:
            unpacked = _unpacked(element.content)
            element = next(_elements(memoryview(unpacked), order), element)
        if element.kind == MATRIX and (field := _field(element.content, order)) is not None:
            return _matrix(field, order)
    raise _DamagedError("the field is not there")


def _unpacked(content: memoryview) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, MAX_FILE)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise _DamagedError("its compressed part is cut or too large")
    return unpacked


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The pieces of ``data``, one after another; each length is checked before it is used."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise _DamagedError("it ends within a tag")
        kind, length = np.frombuffer(data, f"{order}u4", 2, place).tolist()
        start = place + 8
        if kind >> 16:  # at most 4 bytes, within the tag
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
            if length > 4:
                raise _DamagedError("a short piece is too long")
            place += 8
        else:
            padding = 0 if kind == COMPRESSED else -length % 8
            place = start + length + padding
        if start + length > len(data):
            raise _DamagedError("a piece reaches beyond the end")
        yield _Element(kind, data[start : start + length])


class _Head(NamedTuple):
    """Header of a matrix."""

    matrix_class: int
    shape: tuple[int, ...]
    name: bytes


def _head(pieces: Iterator[_Element], order: str) -> _Head:
    flags, shape, name = (_next(pieces) for _ in range(3))
    if len(flags) < 4 or len(shape) % 4:
        raise _DamagedError("a matrix has no shape")
    (first,) = np.frombuffer(flags, f"{order}u4", 1).tolist()
    sizes = np.frombuffer(shape, f"{order}i4").tolist()
    return _Head(first & 0xFF, tuple(sizes), bytes(name))


def _next(pieces: Iterator[_Element]) -> memoryview:
    piece = next(pieces, None)
    if piece is None:
        raise _DamagedError("a matrix is cut short")
    return piece.content


def _field(content: memoryview, order: str) -> memoryview | None:
    """``Segmentation`` in a matrix, if that is the struct ``GTcls`` of size 1x1."""
    pieces = _elements(content, order)
    head = _head(pieces, order)
    if head.matrix_class != STRUCT or head.name != VARIABLE or set(head.shape) != {1}:
        return None
    width, names = _next(pieces), bytes(_next(pieces))
    if len(width) != 4:
        raise _DamagedError("the struct has no fields")
    (length,) = np.frombuffer(width, f"{order}i4").tolist()
    if length < 1:
        raise _DamagedError("the struct has no fields")
    for start in range(0, len(names), length):
        value = _next(pieces)
        if names[start : start + length].rstrip(b"\0") == FIELD:
            return value
    return None


def _matrix(content: memoryview, order: str) -> npt.NDArray[np.generic]:
    pieces = _elements(content, order)
    head = _head(pieces, order)
    numbers = next(pieces, None)
    if head.matrix_class not in NUMERIC or numbers is None or numbers.kind not in NUMBERS:
        raise _DamagedError("the field holds no numbers")
    if any(side < 0 or side > MAX_PIXELS for side in head.shape):
        raise _DamagedError("the field has no possible shape")
    dtype = np.dtype(f"{order}{NUMBERS[numbers.kind]}")
    count = int(np.prod(head.shape, dtype=object))
    if len(numbers.content) != count * dtype.itemsize:
        raise _DamagedError("the field has another number of values than its shape says")
    values = np.frombuffer(numbers.content, dtype).astype(dtype.newbyteorder("="))
    return values.reshape(head.shape, order="F")
