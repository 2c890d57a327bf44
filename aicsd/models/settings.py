"""Settings of a new network."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from aicsd.errors import UserError
from aicsd.models.presets import PRESETS

DEFAULT_FAMILY = "deeplabv3plus"


@dataclass(frozen=True)
class DeepLabV3PlusOptions:
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
    """dropout of the head; 0.5 as published, 0 lets narrow networks learn faster in short runs"""
    weights: str = "none"
    """initial weights: none (random), imagenet (backbone, downloaded by timm), a safetensors file
    with timm's names (backbone), or a trained network of aicsd with the same architecture (whole
    network, to fine-tune it)"""
    released_layout: bool = False
    """dilation and padding of a MobileNetV2 as in the released code; its checkpoints need true,
    ImageNet weights of timm need false"""

    def __post_init__(self) -> None:
        for name in ("aspp_channels", "decoder_channels", "low_level_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is 0 or more and below 1")


@dataclass(frozen=True)
class ModelConfig(DeepLabV3PlusOptions):
    """A network. Keys that other families share with DeepLabV3+ have the same meaning there."""

    family: str = DEFAULT_FAMILY
    """family of networks, such as deeplabv3plus, lraspp, torchvision:NAME with a name of
    torchvision.models.segmentation, smp:NAME with an architecture of segmentation_models_pytorch
    such as unet, whose encoder is the backbone, or transformers:segformer-b0, -b1, -b2; leave keys
    at their defaults that the family does not have"""
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    """keys of other families only, for example {channels: 64} of lraspp"""

    @staticmethod
    def presets() -> dict[str, dict[str, Any]]:
        """Networks with a short name: ``--student small``, ``student: small``."""
        return PRESETS

    def of_family(self) -> tuple[str, dict[str, Any]]:
        """The family, and every option that is not at its default.

        Raises:
            UserError: an option that is given twice.
        """
        family, _, name = self.family.partition(":")
        own = {
            key.name: getattr(self, key.name)
            for key in fields(DeepLabV3PlusOptions)
            if getattr(self, key.name) != key.default
        }
        if name:
            own["name"] = name
        for key in own:
            if key in self.options:
                raise UserError(f"{key} is given twice: also in options")
        return family, {**own, **self.options}
