"""Typed values from JSON and YAML files of unknown origin."""

from __future__ import annotations

import math
from typing import Any

from aicsd.data.convert.source import Size

Record = dict[str, Any]
_LARGEST = 1 << 31


def record(value: object) -> Record:
    """A mapping; empty for anything else."""
    return value if isinstance(value, dict) else {}


def records(value: object, key: str) -> list[Record]:
    """The mappings in the list ``value[key]``; none for anything else."""
    found = record(value).get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def string(value: object) -> str | None:
    """A text that is not empty."""
    return value if isinstance(value, str) and value.strip() else None


def integer(value: object) -> int | None:
    """A whole number, also where it is written as text or as 3.0."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST:
        return int(value)
    return value if isinstance(value, int) else None


def numbers(value: object, count: int) -> list[float] | None:
    """``count`` finite numbers."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(type(entry) in (int, float) and abs(entry) < _LARGEST for entry in value):
        return None
    found = [float(entry) for entry in value]
    return found if all(math.isfinite(entry) for entry in found) else None


def size(height: object, width: object) -> Size | None:
    """A size that both numbers give."""
    rows, columns = integer(height), integer(width)
    if rows is None or columns is None or rows < 1 or columns < 1:
        return None
    return Size(rows, columns)
