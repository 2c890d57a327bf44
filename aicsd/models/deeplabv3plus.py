"""DeepLabV3+ (Chen et al., ECCV 2018, arXiv 1802.02611), as the released AICSD code lays it out.

Every interpolation uses ``align_corners=True``, as that code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from aicsd.errors import UserError
from aicsd.models.backbone import Backbone
from aicsd.models.maps import STAGES, MapInfo, resize
from aicsd.types import LOGITS, SegOutput

ASPP_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, rate: int = 1) -> nn.Sequential:
    """Convolution (1x1 or 3x3, dilated by ``rate``) and batch norm, size kept."""
    padding = rate if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and an image-level branch."""

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn(in_channels, channels)]
            + [conv_bn(in_channels, channels, kernel=3, rate=rate) for rate in rates]
        )
        self.image_pool = conv_bn(in_channels, channels)
        self.project = conv_bn(channels * (len(rates) + 2), channels)

    def forward(self, high: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, channels, h, w), before the activation."""
        # several processes may have one image each: they share their statistics
        if self.training and high.shape[0] == 1 and not distributed.is_initialized():
            raise UserError(
                "a training batch of 1 image: the image-level pooling of DeepLabV3+ has no "
                "batch statistics then; use a batch size of 2 or more"
            )
        maps = [F.relu(branch(high)) for branch in self.branches]
        pooled = F.relu(self.image_pool(high.mean((2, 3), keepdim=True)))
        maps.append(pooled.expand(-1, -1, *high.shape[-2:]))
        projected: Tensor = self.project(torch.cat(maps, dim=1))
        return projected


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on any timm backbone.

    Args:
        backbone: timm architecture, for example ``resnet101`` or ``mobilenetv2_100``.
        num_classes: C.
        output_stride: 8, 16 or 32: input size over the size of the deepest map.
        aspp_channels: width of each ASPP branch (256 in the paper).
        decoder_channels: width of the two 3x3 convolutions of the decoder (256 in the paper).
        low_level_channels: width of the reduced stride-4 map (48 in the paper).
        dropout: after the pyramid and the decoder's first convolution; a fifth of it after the
            second. 0.5 in the released code; narrow networks in short runs learn faster without.
        weights: weights of the backbone: ``none``, ``imagenet`` or a safetensors file.
        released_layout: for a MobileNetV2, see :class:`aicsd.models.Backbone`.

    ``forward`` takes a normalised (B, 3, H, W) image of any size and returns a ``SegOutput`` with
    logits (B, C, ceil(H/4), ceil(W/4)) and the features that ``maps`` declares: ``stage1`` to
    ``stage4`` (activated backbone maps), ``low_level`` and ``high_level`` (the first and the last
    of these), ``aspp`` and ``decoder`` (before their last ReLU).

    Example:
        >>> model = DeepLabV3Plus("mobilenetv2_050", num_classes=11, aspp_channels=64,
        ...                       decoder_channels=64).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).logits.shape
        torch.Size([1, 11, 16, 24])
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 21,
        *,
        output_stride: int = 16,
        aspp_channels: int = 256,
        decoder_channels: int = 256,
        low_level_channels: int = 48,
        dropout: float = 0.5,
        weights: str = "none",
        released_layout: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Backbone(backbone, output_stride, weights, released_layout)
        self.aspp = ASPP(self.backbone.high.channels, aspp_channels, ASPP_RATES[output_stride])
        self.reduce_low = conv_bn(self.backbone.low.channels, low_level_channels)
        self.fuse1 = conv_bn(aspp_channels + low_level_channels, decoder_channels, kernel=3)
        self.fuse2 = conv_bn(decoder_channels, decoder_channels, kernel=3)
        self.aspp_dropout = nn.Dropout(dropout)
        self.fuse1_dropout = nn.Dropout(dropout)
        self.fuse2_dropout = nn.Dropout(dropout / 5)
        self.classifier = nn.Conv2d(decoder_channels, num_classes, 1)
        stages, low, high = self.backbone.stages, self.backbone.low, self.backbone.high
        self.maps = {
            LOGITS: MapInfo(num_classes, low.stride),
            **dict(zip(STAGES, stages, strict=False)),
            "low_level": low,
            "high_level": high,
            "aspp": MapInfo(aspp_channels, high.stride),
            "decoder": MapInfo(decoder_channels, low.stride),
        }
        for part in (self.aspp, self.reduce_low, self.fuse1, self.fuse2, self.classifier):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Tensor) -> SegOutput:
        stages = self.backbone(image)
        low, high = stages[0], stages[-1]
        aspp = self.aspp(high)
        deep = resize(self.aspp_dropout(F.relu(aspp)), low.shape[-2:], align_corners=True)
        fused = torch.cat([deep, F.relu(self.reduce_low(low))], dim=1)
        fused = self.fuse1_dropout(F.relu(self.fuse1(fused)))
        decoder = self.fuse2(fused)
        logits = self.classifier(self.fuse2_dropout(F.relu(decoder)))
        features = dict(zip(STAGES, stages, strict=False))
        features |= {"low_level": low, "high_level": high, "aspp": aspp, "decoder": decoder}
        return SegOutput(logits, features)
