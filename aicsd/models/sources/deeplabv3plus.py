"""DeepLabV3+ on any timm backbone with feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import timm

from aicsd.data.protocol import Classes
from aicsd.models.deeplabv3plus import DeepLabV3Plus
from aicsd.models.input_spec import InputSpec
from aicsd.models.segmenter import Origin, Segmenter
from aicsd.models.settings import DEFAULT_FAMILY as PREFIX
from aicsd.models.settings import DeepLabV3PlusOptions as Options
from aicsd.models.sources.base import only_built, parse_options

__all__ = ["PREFIX", "SHARED", "SUFFIXES", "Options", "build", "load", "names"]

SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset(field.name for field in fields(Options))


def names() -> list[str]:
    """Every timm architecture; one without a stride-4 map is refused when it is built."""
    found: list[str] = timm.list_models()
    return found


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    parsed = parse_options(PREFIX, Options, _named_now(options))
    net = DeepLabV3Plus(
        parsed.backbone,
        len(classes.names),
        output_stride=parsed.output_stride,
        aspp_channels=parsed.aspp_channels,
        decoder_channels=parsed.decoder_channels,
        low_level_channels=parsed.low_level_channels,
        dropout=parsed.dropout,
        weights=parsed.weights,
        released_layout=parsed.released_layout,
    )
    backbone = net.backbone
    model = Segmenter(
        net,
        classes,
        InputSpec(backbone.mean, backbone.std, **backbone.sizes._asdict()),
        maps=net.maps,
        align_corners=True,
        backbone="backbone",
        min_batch=2,
        # the weights of the whole network will be in its file: where they began matters no more
        origin=Origin(PREFIX, asdict(replace(parsed, weights="none"))),
    )
    model.notes += backbone.notes()
    return model


def _named_now(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names that they have now."""
    renamed = {"published_layout": "released_layout"}
    return {renamed.get(key, key): value for key, value in options.items()}


def load(reference: str) -> Segmenter:  # noqa: ARG001
    """Refuse: the family has no trained networks by name."""
    raise only_built(PREFIX)
