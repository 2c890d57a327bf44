"""Files of exchange formats (ONNX, OpenVINO), run by the library that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aicsd.data.protocol import Classes
from aicsd.formats import FORMATS
from aicsd.models.exported import load_exported
from aicsd.models.segmenter import Segmenter
from aicsd.models.sources.base import only_loaded

PREFIX = "exported"
SUFFIXES: tuple[str, ...] = tuple(known.suffix for known in FORMATS)
SHARED: frozenset[str] = frozenset()


def names() -> list[str]:
    """None: exported networks are files."""
    return []


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:  # noqa: ARG001
    """Refuse: such networks are not built."""
    raise only_loaded("exported files")


def load(reference: str) -> Segmenter:
    """The network in a file."""
    return load_exported(Path(reference))
