"""LR-ASPP on any timm backbone with feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from aicsd.data.protocol import Classes
from aicsd.models.input_spec import InputSpec
from aicsd.models.lraspp import LRASPP
from aicsd.models.segmenter import Origin, Segmenter
from aicsd.models.sources.base import only_built, parse_options
from aicsd.models.sources.deeplabv3plus import names

__all__ = ["PREFIX", "SHARED", "SUFFIXES", "Options", "build", "load", "names"]

PREFIX = "lraspp"
SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset(("backbone", "output_stride", "weights"))


@dataclass(frozen=True)
class Options:
    """An LR-ASPP."""

    backbone: str = "mobilenetv2_050"
    """timm architecture with maps at strides 4 and 8"""
    output_stride: int = 16
    """input size over the size of the deepest map: 8, 16 or 32"""
    channels: int = 128
    """width of the head"""
    weights: str = "none"
    """where the backbone starts: none, imagenet, or a safetensors file with timm's names"""


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    parsed = parse_options(PREFIX, Options, options)
    net = LRASPP(
        parsed.backbone,
        len(classes.names),
        output_stride=parsed.output_stride,
        channels=parsed.channels,
        weights=parsed.weights,
    )
    backbone = net.backbone
    model = Segmenter(
        net,
        classes,
        InputSpec(backbone.mean, backbone.std, **backbone.sizes._asdict()),
        maps=net.maps,
        backbone="backbone",
        origin=Origin(PREFIX, asdict(replace(parsed, weights="none"))),
    )
    model.notes += backbone.notes()
    return model


def load(reference: str) -> Segmenter:  # noqa: ARG001
    """Refuse: the family has no trained networks by name."""
    raise only_built(PREFIX)
