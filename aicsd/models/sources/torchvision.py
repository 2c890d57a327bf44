"""The segmentation networks of torchvision: DeepLabV3, FCN and LR-ASPP."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torchvision.models
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, suggest
from aicsd.models.maps import STAGES
from aicsd.models.segmenter import Origin, Segmenter
from aicsd.models.sources.base import named_classes, parse_options
from aicsd.types import SegOutput

PREFIX = "torchvision"
SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset(("weights",))
STAGE_MODULES = {
    "layer4": ("layer1", "layer2", "layer3", "layer4"),
    "16": ("3", "6", "12", "16"),
}
"""Last module of a backbone -> the modules that end its stages (ResNet, MobileNetV3-Large)."""
WEIGHTS = ("none", "imagenet", "trained")


@dataclass(frozen=True)
class Options:
    """A segmentation network of torchvision."""

    name: str
    """its name there, for example lraspp_mobilenet_v3_large"""
    weights: str = "none"
    """none (random), imagenet (the backbone) or trained (the whole network; a classifier for other
    classes than those of VOC starts anew); torchvision downloads them"""

    def __post_init__(self) -> None:
        if self.name not in names():
            raise UserError(
                f"torchvision has no segmentation network {self.name!r}"
                f"{suggest(self.name, names())}"
            )
        if self.weights not in WEIGHTS:
            raise UserError(f"weights is {self.weights!r}; torchvision has {', '.join(WEIGHTS)}")


class TorchvisionNet(nn.Module):
    """Backbone and classifier of torchvision, without its last resizing and auxiliary head.

    ``forward`` takes a normalised (B, 3, H, W) image and returns logits at the stride of the
    classifier, and ``stage1`` to ``stage4``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        backbone, classifier = net.get_submodule("backbone"), net.get_submodule("classifier")
        assert isinstance(backbone, nn.ModuleDict)
        self.backbone, self.classifier = backbone, classifier
        self._returned: dict[str, str] = dict(backbone.return_layers)  # type: ignore[arg-type]
        self._stages = dict(zip(STAGE_MODULES[list(backbone)[-1]], STAGES, strict=True))

    def forward(self, image: Tensor) -> SegOutput:
        maps, read, features = image, {}, {}
        for name, module in self.backbone.items():
            maps = module(maps)
            if name in self._returned:
                read[self._returned[name]] = maps
            if name in self._stages:
                features[self._stages[name]] = maps
        logits: Tensor = self.classifier(read.get("out", read))
        return SegOutput(logits, features)


def names() -> list[str]:
    """Networks of ``torchvision.models.segmentation``."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models.segmentation)
    return found


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    parsed = parse_options(PREFIX, Options, options)
    full = _download(parsed.name) if parsed.weights == "trained" else None
    settings: dict[str, Any] = {"weights_backbone": None}
    if parsed.weights == "imagenet":
        del settings["weights_backbone"]  # the default: those of ImageNet
    try:
        whole = torchvision.models.get_model(
            parsed.name, weights=None, num_classes=len(classes.names), **settings
        )
    except OSError as error:
        raise _not_downloaded(parsed.name, error) from error
    net = TorchvisionNet(whole)
    if full is not None:
        _load_matching(net, full)
    return Segmenter(
        net,
        classes,
        backbone="backbone",
        min_batch=2 if "deeplabv3" in parsed.name else 1,
        origin=Origin(PREFIX, asdict(replace(parsed, weights="none"))),
    )


def load(reference: str) -> Segmenter:
    """A network trained on COCO with the classes of VOC, such as ``deeplabv3_resnet101``."""
    parsed = parse_options(PREFIX, Options, {"name": reference})
    weights = torchvision.models.get_model_weights(reference).DEFAULT
    categories = [name.removeprefix("__").removesuffix("__") for name in weights.meta["categories"]]
    model = build(asdict(parsed), named_classes(categories))
    _load_matching(model.net, _download(reference))
    return model.eval()


def _download(name: str) -> Mapping[str, Tensor]:
    """The trained weights, read as tensors only."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except OSError as error:
        raise _not_downloaded(name, error) from error
    return state


def _not_downloaded(name: str, error: OSError) -> UserError:
    return UserError(
        f"the weights of torchvision's {name} could not be downloaded ({type(error).__name__})"
    )


def _load_matching(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights of every layer; a classifier for other classes stays as it is."""
    own = net.state_dict()
    used = {key: value for key, value in state.items() if key in own}
    used |= {key: own[key] for key, value in used.items() if value.shape != own[key].shape}
    net.load_state_dict(used)
