"""The networks of segmentation_models_pytorch: U-Net, FPN, PSPNet, UPerNet, SegFormer and more."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, one_line, suggest
from aicsd.models.input_spec import IMAGENET, InputSpec
from aicsd.models.maps import STAGES
from aicsd.models.segmenter import Origin, Segmenter
from aicsd.models.sources.base import nameless_classes, parse_options, require
from aicsd.models.sources.folder import fill, find_folder, folder_classes, read_config, read_weights
from aicsd.types import SegOutput

PREFIX = "smp"
SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset(("weights",))
LIBRARY = "segmentation_models_pytorch"
ARCHITECTURES = (
    "deeplabv3",
    "deeplabv3plus",
    "dpt",
    "fpn",
    "linknet",
    "manet",
    "pan",
    "pspnet",
    "segformer",
    "unet",
    "unetplusplus",
    "upernet",
)
POOLED = ("deeplabv3", "deeplabv3plus", "pan", "upernet")
"""Architectures that normalise an image-level pooling over the batch."""
TAKEN = (
    "self",
    "kwargs",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
)
"""Parameters of an architecture other than options."""
ENCODER_OPTIONS = ("dynamic_img_size", "img_size", "patch_size", "drop_path_rate")
"""Further options of encoders of timm (``tu-...``)."""
VIT = "dpt"
"""The architecture whose encoder is a plain vision transformer: all of its maps have one stride."""
PYRAMID = "pan"
"""The architecture whose decoder halves the last map of the encoder three times."""
_HALF = InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN = InputSpec((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
KNOWN_INPUTS = {
    "inceptionresnetv2": _HALF,
    "inceptionv4": _HALF,
    "xception": _HALF,
    "dpn68": _DPN,
    "dpn68b": _DPN,
    "dpn92": _DPN,
    "dpn98": _DPN,
    "dpn107": _DPN,
    "dpn131": _DPN,
}
"""Encoders of the library whose ImageNet weights do not take the usual mean and std."""


@dataclass(frozen=True)
class Options:
    """A network of segmentation_models_pytorch; its own parameters are options too."""

    name: str
    """architecture, for example unet"""
    encoder: str = ""
    """its backbone there, for example resnet18, mit_b0 or, of timm, tu-mobilenetv3_small_050"""
    weights: str = "none"
    """none (random) or imagenet (the encoder; the library downloads them)"""
    binary: bool = False
    """one logit for the second of two classes, as the library trains them with classes=1"""

    def __post_init__(self) -> None:
        if self.name not in ARCHITECTURES:
            raise UserError(
                f"smp has no architecture {self.name!r}{suggest(self.name, ARCHITECTURES)}"
            )
        if self.weights not in ("none", "imagenet"):
            raise UserError(f"weights is {self.weights!r}; smp has none, imagenet")


class SMPNet(nn.Module):
    """Encoder, decoder and head of a network, without the last resizing and activation.

    ``forward`` takes a normalised (B, 3, H, W) image and returns logits at the stride of the head,
    ``stem`` and ``stage1`` to ``stage4`` as far as the encoder has them, and ``decoder``.
    """

    def __init__(self, net: nn.Module, is_vit: bool, binary: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = net.get_submodule("encoder"), net.get_submodule("decoder")
        self.head = net.get_submodule("segmentation_head.head" if is_vit else "segmentation_head.0")
        self._is_vit, self._binary = is_vit, binary

    def forward(self, image: Tensor) -> SegOutput:
        if self._is_vit:
            stages, prefix = self.encoder(image)
            decoded = self.decoder(stages, prefix)
            named = dict(zip(STAGES, stages, strict=False))
        else:
            stages = self.encoder(image)
            decoded = self.decoder(stages)
            named = dict(zip(("stem", *STAGES), stages[1:], strict=False))
        logits: Tensor = self.head(decoded)
        if self._binary:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        # some encoders have an empty map at stride 2
        return SegOutput(
            logits, {n: m for n, m in (named | {"decoder": decoded}).items() if m.shape[1]}
        )


def names() -> list[str]:
    """Architectures of the library."""
    return list(ARCHITECTURES)


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    own = {field.name for field in fields(Options)}
    renamed = {"encoder" if key == "backbone" else key: value for key, value in options.items()}
    if len(renamed) < len(options):
        raise UserError(f"family {PREFIX}: encoder and backbone are the same option; give one")
    further = {key: value for key, value in renamed.items() if key not in own}
    parsed = parse_options(PREFIX, Options, {k: v for k, v in renamed.items() if k in own})
    library = require(LIBRARY, PREFIX)
    kind = library.MODEL_ARCHITECTURES_MAPPING[parsed.name]
    signature = inspect.signature(kind.__init__).parameters
    encoder = parsed.encoder or signature["encoder_name"].default
    allowed = [name for name in signature if name not in TAKEN]
    if encoder.startswith("tu-"):
        allowed += ENCODER_OPTIONS
    for key in further:
        if key not in allowed:
            known = sorted({*own, *allowed})
            raise UserError(f"family {PREFIX}: unknown key {key!r}{suggest(key, known)}")
    if parsed.binary and len(classes.names) != 2:
        raise UserError(f"family {PREFIX}: binary is for 2 classes, not {len(classes.names)}")
    if parsed.name == VIT and not {"dynamic_img_size", "img_size"} & further.keys():
        further["dynamic_img_size"] = True
    count = 1 if parsed.binary else len(classes.names)
    whole = _create(kind, encoder, parsed.weights, count, further)
    described = {
        "name": parsed.name,
        "encoder": encoder,
        "weights": "none",
        "binary": parsed.binary,
        **further,
    }
    return _segmenter(whole, described, classes)


def adopt(module: nn.Module, classes: Classes | None = None) -> Segmenter | None:
    """A network that was built with the library, or None if ``module`` is none.

    Args:
        module: is trained in place.
        classes: predicted classes; without them they have no names.

    Raises:
        UserError: a network that cannot be used.
    """
    library = sys.modules.get(LIBRARY)
    if library is None or not isinstance(module, library.base.SegmentationModel):
        return None
    held = dict(getattr(module, "config", None) or {})
    options, count = _described({**held, "_model_class": type(module).__name__}, "the module")
    return _segmenter(module, options, classes or nameless_classes(max(count, 2)))


def _segmenter(whole: nn.Module, described: dict[str, Any], classes: Classes) -> Segmenter:
    name, spec = described["name"], _input(described["name"], described["encoder"], whole)
    return Segmenter(
        SMPNet(whole, name == VIT, described["binary"]),
        classes,
        spec,
        align_corners=True,
        backbone="encoder",
        min_batch=2 if name in POOLED else 1,
        origin=Origin(PREFIX, described),
    )


def load(reference: str) -> Segmenter:
    """A network that ``save_pretrained`` of the library wrote: a folder or a name on the hub."""
    if reference in ARCHITECTURES:
        raise UserError(
            f"smp:{reference} names an architecture without weights; give the folder or the hub "
            f"name of a trained network, or train one: aicsd train --model.family smp:{reference}"
        )
    return load_folder(find_folder(reference))


def wrote(config: Mapping[str, Any]) -> bool:
    """Whether the ``config.json`` of a folder is one of the library."""
    return "_model_class" in config


def load_folder(folder: Path) -> Segmenter:
    """The network in a folder with ``config.json`` and ``model.safetensors``.

    The library keeps no names of classes: a file ``classes.txt`` in the folder gives them.
    """
    options, count = _described(read_config(folder), str(folder))
    try:
        model = build(options, folder_classes(folder, max(count, 2)))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    state = {_in_net(key): value for key, value in read_weights(folder).items()}
    fill(folder, model.net, state)
    return model.eval()


def _described(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], int]:
    """Options of a network of the library by its own configuration, and its logits.

    Raises:
        UserError: a network that cannot be used, named by ``where``.
    """
    name = str(config.get("_model_class", "")).lower()
    if name not in ARCHITECTURES:
        raise UserError(
            f"{where} names no network of {LIBRARY} in config.json (_model_class: "
            f"{config.get('_model_class')!r}; known are {', '.join(ARCHITECTURES)})"
        )
    if config.get("in_channels", 3) != 3 or config.get("aux_params") is not None:
        raise UserError(f"{where}: only networks for 3 channels without aux_params can be used")
    count = int(config.get("classes", 1))
    options = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if key not in TAKEN and not key.startswith("_") and value is not None
    }
    if name == VIT:
        options.setdefault("dynamic_img_size", False)
    encoder = str(config.get("encoder_name", ""))
    described = {"name": name, "encoder": encoder, "weights": "none", "binary": count == 1}
    return {**described, **options}, count


def _in_net(key: str) -> str:
    """Name of a weight of the library in :class:`SMPNet`."""
    for head in ("segmentation_head.head.", "segmentation_head.0."):
        if key.startswith(head):
            return f"head.{key.removeprefix(head)}"
    return key


def _create(
    kind: Any, encoder: str, weights: str, count: int, options: Mapping[str, Any]
) -> nn.Module:
    named = f"smp:{kind.__name__.lower()} with the encoder {encoder!r}"
    try:
        net: nn.Module = kind(
            encoder_name=encoder,
            encoder_weights="imagenet" if weights == "imagenet" else None,
            in_channels=3,
            classes=count,
            **options,
        )
    except OSError as error:
        raise UserError(
            f"the ImageNet weights of {named} could not be downloaded ({type(error).__name__})"
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, KeyError) and weights == "none":
            known = require(LIBRARY, PREFIX).encoders.get_encoder_names()
            raise UserError(
                f"smp has no encoder {encoder!r}{suggest(encoder, known)}; those of timm are "
                "called tu-NAME"
            ) from error
        reason = one_line(error)
        raise UserError(f"{named} cannot be built: {reason}") from error
    return net


def _input(name: str, encoder: str, net: nn.Module) -> InputSpec:
    """Input spec of the encoder's weights, as far as it is known without a download."""
    found: Any = net.get_submodule("encoder")
    spec = IMAGENET
    if encoder.startswith("tu-"):
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        if known is not None:
            spec = spec._replace(mean=tuple(known.mean), std=tuple(known.std))
    elif encoder in KNOWN_INPUTS:
        spec = KNOWN_INPUTS[encoder]
    patches = getattr(getattr(found, "model", None), "patch_embed", None)
    fixed = (
        getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", False) else None
    )
    if fixed is not None and not getattr(found.model, "dynamic_img_size", False):
        return spec._replace(size=(int(fixed[0]), int(fixed[1])))
    stride = int(found.output_stride)
    if name == PYRAMID:
        spec = spec._replace(least=8 * stride)
    if not getattr(net, "requires_divisible_input_shape", True):
        return spec
    # the decoder of a vision transformer halves the map of its last stage
    return spec._replace(multiple=2 * stride if name == VIT else stride)
