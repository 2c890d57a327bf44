"""Any timm model that offers feature maps, as a backbone: named maps with channels and strides."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from aicsd.errors import UserError

OUTPUT_STRIDES = (8, 16, 32)
MULTI_GRID = (1, 2, 4)


class FeatureMap(NamedTuple):
    """One of the maps that a backbone returns."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """A timm feature extractor reduced to the two maps that DeepLabV3+ reads.

    Args:
        name: timm architecture (``timm.list_models()``) that offers feature maps.
        output_stride: input size divided by the size of the deepest map: 8, 16 or 32.
        weights: ``none`` (random), ``imagenet`` (downloaded by timm) or the path of a
            safetensors file with timm's names.
        published_layout: of a MobileNetV2: dilate and pad as the published code does instead of as
            timm (and its ImageNet weights) do. A stage that gives up its stride keeps the rate so
            far, where timm dilates all its blocks but the first. Padding comes before the 1x1
            expansions instead of before the depthwise convolutions, which at the border then meet
            ``ReLU6(BN(0))`` instead of 0.

    ``low`` declares the stride-4 map and ``high`` the deepest one. ResNets are dilated as in the
    published code: every 3x3 convolution of a dilated stage takes the stage's rate, and the last
    stage of a bottleneck ResNet multiplies it by the multi-grid 1, 2, 4.

    Raises:
        UserError: unknown name, no feature maps, unsupported output stride, weights that do not
            fit, or ``published_layout`` of another family.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        weights: str = "none",
        published_layout: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride is {output_stride}; allowed are {OUTPUT_STRIDES}")
        self.name = name
        self.body = _create(name, output_stride, pretrained=weights == "imagenet")
        info = [
            FeatureMap(int(channels), int(stride))
            for channels, stride in zip(
                self.body.feature_info.channels(),  # type: ignore[union-attr,operator]
                self.body.feature_info.reduction(),  # type: ignore[union-attr,operator]
                strict=True,
            )
        ]
        strides = [feature.stride for feature in info]
        if 4 not in strides or strides[-1] != output_stride:
            raise UserError(
                f"backbone {name!r} has maps at strides {strides}; DeepLabV3+ needs stride 4 "
                f"and the last at output_stride {output_stride}: choose another backbone or stride"
            )
        self._low_index = strides.index(4)
        self.low, self.high = info[self._low_index], info[-1]
        _dilate_resnet(self.body, output_stride)
        if published_layout:
            if not name.startswith("mobilenetv2_"):
                raise UserError(
                    f"published_layout is for the backbones mobilenetv2_*, not for {name!r}"
                )
            _lay_out_mobilenetv2(self.body)
        self.dropped_weights: list[str] = []
        if weights not in ("none", "imagenet"):
            self.dropped_weights = _load_weights(self.body, Path(weights), name)
        config = cast(dict[str, tuple[float, float, float]], getattr(self.body, "default_cfg", {}))
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised image -> the stride-4 map and the deepest map, both activated."""
        maps = self.body(image)
        return maps[self._low_index], maps[-1]


def _create(name: str, output_stride: int, pretrained: bool) -> nn.Module:
    # timm rejects output_stride for families that cannot be dilated; 32 is what they have anyway
    dilation: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    known = timm.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see timm.list_models()"
        raise UserError(f"unknown backbone {name!r}{hint}")
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **dilation)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"backbone {name!r} cannot serve at output_stride {output_stride}: {reason}"
        ) from error
    except OSError as error:
        raise UserError(
            f"the ImageNet weights of {name!r} could not be downloaded ({type(error).__name__}); "
            "use weights: none, or the path of a safetensors file"
        ) from error


def _dilate_resnet(body: nn.Module, output_stride: int) -> None:
    """Set the dilations of the published code (timm leaves the first block of a stage behind)."""
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
    missing = sorted(k for k in expected if k not in stored and "num_batches" not in k)
    wrong = [
        f"{key} is {tuple(stored[key].shape)}, needs {tuple(value.shape)}"
        for key, value in expected.items()
        if key in stored and stored[key].shape != value.shape
    ]
    if missing or wrong:
        problems = [f"{len(missing)} keys missing: {shorten(missing)}"] if missing else []
        problems += [f"{len(wrong)} of another shape: {shorten(wrong)}"] if wrong else []
        raise UserError(f"{path} does not fit backbone {name!r}: {'; '.join(problems)}")
    body.load_state_dict({k: v for k, v in stored.items() if k in expected}, strict=False)
    return sorted(set(stored) - set(expected))


def shorten(keys: list[str], count: int = 5) -> str:
    """The first of ``keys``, and how many more there are."""
    more = f", and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more
