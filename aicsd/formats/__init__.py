"""Exchange formats of trained networks, one a file. Adding one adds a line to ``FORMATS``."""

from __future__ import annotations

from pathlib import Path

from aicsd.errors import UserError, suggest
from aicsd.formats import coreml, executorch, litert, onnx, openvino, torch_export
from aicsd.formats.base import Format

FORMATS: tuple[Format, ...] = (
    onnx.FORMAT,
    openvino.FORMAT,
    torch_export.FORMAT,
    litert.FORMAT,
    executorch.FORMAT,
    coreml.FORMAT,
)

__all__ = ["FORMATS", "Format", "find_format", "format_of"]


def find_format(path: Path) -> Format | None:
    """The format whose ending ``path`` has, in letters of any case; None if it has none."""
    return next((known for known in FORMATS if known.suffix == path.suffix.lower()), None)


def format_of(path: Path, name: str | None = None) -> Format:
    """The format ``name``, or without it the one that ``path`` ends in.

    Raises:
        UserError: an unknown name or ending, or an ending that does not belong to the format.
    """
    named = {known.name: known for known in FORMATS}
    if name is not None and name not in named:
        raise UserError(f"unknown format {name!r}{suggest(name, named)}")
    found = find_format(path)
    if found is None or name not in (None, found.name):
        endings = [named[name]] if name else FORMATS
        wanted = ", ".join(known.suffix for known in endings)
        raise UserError(f"out: {path} must end in {wanted} {f'for {name}' if name else ''}".strip())
    return found
