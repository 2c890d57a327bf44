"""DeepLabV3+ on any timm backbone with feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models.deeplabv3plus import DeepLabV3Plus
from aicsd.models.segmenter import InputSpec, Origin, Segmenter
from aicsd.models.sources.base import only_built, parse_options

PREFIX = "deeplabv3plus"
SUFFIXES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """A DeepLabV3+."""

    backbone: str = "mobilenetv2_050"
    """timm architecture, for example resnet101, resnet18 or mobilenetv2_100"""
    output_stride: int = 16
    """input size over the size of the deepest map: 8, 16 or 32"""
    aspp_channels: int = 256
    """width of the pyramid pooling; 256 in the paper, 64 for a small student"""
    decoder_channels: int = 256
    """width of the decoder; 256 in the paper, 64 for a small student"""
    low_level_channels: int = 48
    """width of the reduced stride-4 map of the decoder"""
    dropout: float = 0.5
    """in the head; 0.5 as published, 0 lets narrow networks learn faster in short runs"""
    weights: str = "none"
    """where the backbone starts: none (random), imagenet (timm downloads them), a safetensors file
    with timm's names, or a trained network of aicsd with the same architecture to start the whole
    network from"""
    released_layout: bool = False
    """for a MobileNetV2, dilate and pad as the released code does; checkpoints of that code need
    it, ImageNet weights of timm are made for timm's own layout"""

    def __post_init__(self) -> None:
        for name in ("aspp_channels", "decoder_channels", "low_level_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is 0 or more and below 1")


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
        net, classes, InputSpec(backbone.mean, backbone.std, multiple=backbone.multiple),
        maps=net.maps, align_corners=True, backbone="backbone", min_batch=2,
        # the weights of the whole network will be in its file: where they began matters no more
        origin=Origin(PREFIX, asdict(replace(parsed, weights="none"))),
    )  # fmt: skip
    model.notes += backbone.notes()
    return model


def _named_now(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names that they have now."""
    renamed = {"published_layout": "released_layout"}
    return {renamed.get(key, key): value for key, value in options.items()}


def load(reference: str) -> Segmenter:  # noqa: ARG001
    """Refuse: the family has no trained networks by name."""
    raise only_built(PREFIX)
