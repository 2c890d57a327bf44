"""Families of networks, one a file. Adding one adds a line to ``SOURCES``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from aicsd.models.settings import DEFAULT_FAMILY
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
from aicsd.models.sources.base import Library, Source

SOURCES: tuple[Source, ...] = (
    deeplabv3plus,
    lraspp,
    torchvision,
    smp,
    transformers,
    released,
    exported,
    hub,
)

LIBRARIES = tuple(source for source in SOURCES if isinstance(source, Library))

__all__ = [
    "LIBRARIES",
    "SOURCES",
    "Library",
    "Source",
    "find_source",
    "has_backbone",
    "without_other_family",
]


def find_source(prefix: str) -> Source | None:
    """The source of a family, or None."""
    return next((source for source in SOURCES if prefix == source.PREFIX), None)


def has_backbone(family: str) -> bool:
    """Whether the networks of a family differ in their backbone."""
    options = getattr(find_source(family), "Options", None)
    return is_dataclass(options) and any(field.name == "backbone" for field in fields(options))


def without_other_family(held: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Keys of a network that stay where another layer of settings names its family.

    Args:
        held: keys of :class:`aicsd.models.ModelConfig` below that layer.
        family: family that the layer names.

    Returns:
        All of the same family; else those that both families know and take the same values for.
    """
    own, other = (
        find_source(str(name).partition(":")[0])
        for name in (held.get("family", DEFAULT_FAMILY), family)
    )
    if own is other or own is None or other is None:
        return dict(held)
    return {key: value for key, value in held.items() if key in own.SHARED & other.SHARED}
