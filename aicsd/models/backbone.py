"""Any timm model that offers feature maps, as a backbone: named maps with channels and strides."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from aicsd.errors import UserError, one_line
from aicsd.models.maps import MapInfo
from aicsd.models.state_keys import state_differences

OUTPUT_STRIDES = (8, 16, 32)
MULTI_GRID = (1, 2, 4)


class Backbone(nn.Module):
    """A timm feature extractor reduced to its maps from stride 4 on, four at most.

    Args:
        name: timm architecture (``timm.list_models()``) that offers feature maps.
        output_stride: input size divided by the size of the deepest map: 8, 16 or 32.
        weights: ``none`` (random), ``imagenet`` (downloaded by timm) or the path of a
            safetensors file with timm's names.
        released_layout: dilate and pad a MobileNetV2 as the released code does instead of as
            timm (and its ImageNet weights) do. A stage that gives up its stride keeps the rate so
            far, where timm dilates all its blocks but the first. Padding comes before the 1x1
            expansions instead of before the depthwise convolutions, whose input at the border
            then is ``ReLU6(BN(0))`` instead of 0.

    ``stages`` declares the maps; ``low`` is the first and ``high`` the deepest one. ``sizes`` says
    which sides an image may have. ResNets are dilated as in the released code: every 3x3
    convolution of a dilated stage takes the stage's rate, and the last stage of a bottleneck ResNet
    multiplies it by the multi-grid 1, 2, 4.

    Raises:
        UserError: unknown name, no feature maps, unsupported output stride, weights that do not
            fit, or ``released_layout`` of another family.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        weights: str = "none",
        released_layout: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride is {output_stride}; allowed are {OUTPUT_STRIDES}")
        self.name, self.weights = name, weights
        self.body, self.sizes = _create(name, output_stride, pretrained=weights == "imagenet")
        info = [
            MapInfo(int(channels), int(stride))
            for channels, stride in zip(
                _feature_info(self.body).channels(),
                _feature_info(self.body).reduction(),
                strict=True,
            )
        ]
        strides = [stage.stride for stage in info]
        if 4 not in strides:
            raise UserError(
                f"backbone {name!r} has maps at strides {strides}; one at stride 4 is needed: "
                "choose another backbone"
            )
        if strides[-1] != output_stride:
            raise UserError(
                f"backbone {name!r} has maps at strides {strides}, and output_stride is "
                f"{output_stride}: choose another backbone or stride"
            )
        self._first = strides.index(4)
        self._channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        self.stages = info[self._first :]
        self.low, self.high = self.stages[0], self.stages[-1]
        _dilate_resnet(self.body, output_stride)
        if released_layout:
            if not name.startswith("mobilenetv2_"):
                raise UserError(
                    f"released_layout is for the backbones mobilenetv2_*, not for {name!r}"
                )
            _lay_out_mobilenetv2(self.body)
        self.dropped_weights: list[str] = []
        if weights not in ("none", "imagenet"):
            self.dropped_weights = _load_weights(self.body, Path(weights), name)
        config = cast(dict[str, tuple[float, float, float]], getattr(self.body, "default_cfg", {}))
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))

    def notes(self) -> list[str]:
        """Remarks on how the backbone was built."""
        if not self.dropped_weights:
            return []
        return [
            f"{self.weights}: every key of the feature layers is used; left out, of the "
            f"classification head: {', '.join(self.dropped_weights)}"
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised image -> the maps of ``stages``, activated."""
        maps: list[Tensor] = self.body(image)[self._first :]
        return [stage.permute(0, 3, 1, 2) for stage in maps] if self._channels_last else maps


class Sizes(NamedTuple):
    """Sides of an image that a backbone takes."""

    multiple: int = 1
    """Each must be a multiple of it."""
    least: int = 1
    """Each must be that long."""


def _feature_info(body: nn.Module) -> Any:
    """Channels and reductions of the maps, which timm declares on its extractors."""
    return cast(Any, body).feature_info


def _create(name: str, output_stride: int, pretrained: bool) -> tuple[nn.Module, Sizes]:
    """The feature extractor, and the sizes that it takes."""
    # timm rejects output_stride for families that cannot be dilated; 32 is what they have anyway
    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    architecture = name.split(".")[0]
    if architecture not in timm.list_models(architecture):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models()"
        raise UserError(f"unknown backbone {name!r}{hint}")
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    multiple = 1
    try:
        if config is not None and config.fixed_input_size:
            free, multiple = _free_size(name, options)
            options |= free
        body = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        return body, _try_sizes(body, multiple)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        reason = one_line(error, 500)
        if "home directory" in reason:
            raise UserError(
                f"the ImageNet weights of {name!r} have no place to be stored: this user has no "
                "home folder; set HF_HOME to a folder, or use weights: none"
            ) from error
        advice = "" if output_stride == 32 else "; output_stride 32 is what every backbone has"
        raise UserError(
            f"backbone {name!r} cannot serve at output_stride {output_stride}: {reason}{advice}"
        ) from error
    except OSError as error:
        raise UserError(
            f"the ImageNet weights of {name!r} could not be downloaded ({type(error).__name__}); "
            "use weights: none, or the path of a safetensors file"
        ) from error


def _free_size(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Options by which a network of one input size takes any, and the multiple that remains.

    Tried out without weights: a network that takes one size only is refused before it is built.
    """
    free: dict[str, Any] = {"strict_img_size": False}
    with torch.device("meta"):
        try:
            body = timm.create_model(name, features_only=True, **options, **free)
        except TypeError:  # a family without that option
            free = {}
            body = timm.create_model(name, features_only=True, **options)
        if 4 not in _feature_info(body).reduction():
            return {}, 1  # refused for its strides
        body.eval()
        for multiple in (1, 4, 32):
            height, width = (-(-side // multiple) * multiple for side in (97, 131))
            try:
                with torch.no_grad():
                    body(torch.zeros(1, 3, height, width))
            except (RuntimeError, AssertionError):
                continue
            return free, multiple
    height, width = cast(Any, body).default_cfg["input_size"][1:]
    raise UserError(
        f"backbone {name!r} takes images of {height}x{width} pixels only; choose one that takes "
        "any size"
    )


def _try_sizes(body: nn.Module, multiple: int) -> Sizes:
    """The sizes that a backbone takes, tried out on small images; ``multiple`` is known."""
    if next(body.parameters()).is_meta:
        return Sizes(multiple)  # only its shapes are wanted
    if 4 not in _feature_info(body).reduction():
        return Sizes(multiple)  # refused for its strides
    training = body.training
    body.eval()
    sides = (49, 67)
    multiples = [each for each in (1, 4, 32) if each >= multiple]
    fitting = (m for m in multiples if _takes(body, *(-(-side // m) * m for side in sides)))
    multiple = next(fitting, multiple)
    tried = (side for side in (1, 2, 4, 8, 16) if side % multiple == 0)
    least = next((side for side in tried if _takes(body, side, side)), 32)
    body.train(training)
    return Sizes(multiple, least)


@torch.no_grad()
def _takes(body: nn.Module, height: int, width: int) -> bool:
    try:
        body(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError):
        return False
    return True


def _dilate_resnet(body: nn.Module, output_stride: int) -> None:
    """Set the dilations of the released code (timm leaves the first block of a stage behind)."""
    rates = {8: {"layer3": 2, "layer4": 4}, 16: {"layer4": 2}, 32: {}}[output_stride]
    for stage_name in ("layer3", "layer4"):
        stage = getattr(body, stage_name, None)
        if stage is None or not isinstance(stage[0], BasicBlock | Bottleneck):
            return
        grid = MULTI_GRID if stage_name == "layer4" and isinstance(stage[0], Bottleneck) else (1,)
        if stage_name not in rates:
            continue
        for position, block in enumerate(stage):
            rate = rates[stage_name] * grid[position % len(grid)]
            for module in block.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.dilation = (rate, rate)
                    module.padding = (rate, rate)


def _lay_out_mobilenetv2(body: nn.Module) -> None:
    """Dilate all blocks of a stage as its first one, and pad before the expansions."""
    for stage in cast(Any, body).blocks:
        rate = stage[0].conv_dw.dilation
        for block in stage:
            block.conv_dw.dilation = block.conv_dw.padding = rate
            if isinstance(block, InvertedResidual):
                # the expansion has no bias, so its padding puts zeros before the batch norm
                block.conv_pw.padding, block.conv_dw.padding = rate, (0, 0)


def _load_weights(body: nn.Module, path: Path, name: str) -> list[str]:
    """Load ``path`` into ``body``; return the keys of the file that belong to a dropped head."""
    if not path.is_file():
        raise UserError(f"no backbone weights at {path}; give none, imagenet or a safetensors file")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    expected = body.state_dict()
    # timm flattens the first level of some families: stages.0.x of the network is stages_0.x here
    flat = {key: key.replace(".", "_", 1) for key in stored if key not in expected}
    stored = {flat[k] if flat.get(k) in expected else k: value for k, value in stored.items()}
    known = {key: value for key, value in stored.items() if key in expected}
    different = state_differences(expected, known, listed=5)
    if different:
        raise UserError(f"{path} does not fit backbone {name!r}: {different}")
    body.load_state_dict(known, strict=False)
    return sorted(set(stored) - set(expected))
