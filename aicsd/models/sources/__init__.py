"""Families of networks, one a file. Adding one adds a line to ``SOURCES``."""

from __future__ import annotations

from aicsd.models.sources import (
    deeplabv3plus,
    exported,
    hub,
    lraspp,
    released,
    smp,
    torchvision,
    transformers,
)
from aicsd.models.sources.base import Source

SOURCES: tuple[Source, ...] = (
    deeplabv3plus, lraspp, torchvision, smp, transformers, released, exported, hub,
)  # fmt: skip

__all__ = ["SOURCES", "Source", "find_source"]


def find_source(prefix: str) -> Source | None:
    """The source of a family, or None."""
    return next((source for source in SOURCES if prefix == source.PREFIX), None)
