"""LR-ASPP (Howard et al., ICCV 2019, arXiv 1905.02244, figure 10) on any timm backbone."""

from __future__ import annotations

from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.models.backbone import Backbone
from aicsd.models.maps import STAGES, MapInfo, resize
from aicsd.types import LOGITS, SegOutput


class LRASPP(nn.Module):
    """A head of two 1x1 convolutions on the deepest map and one on the stride-8 map.

    Where the paper pools windows of 49x49 pixels, the whole map is pooled, as torchvision does.

    Args:
        backbone: timm architecture with a stride-8 map.
        num_classes: C.
        output_stride: 16 as in the paper; 8 or 32.
        channels: width of the head (128 in the paper).
        weights: weights of the backbone: ``none``, ``imagenet`` or a safetensors file.

    ``forward`` takes a normalised (B, 3, H, W) image and returns a ``SegOutput`` with logits at
    stride 8 and the features that ``maps`` declares: ``stage1`` to ``stage4`` and ``head``, the
    map before the classifier.

    Raises:
        UserError: a backbone without a stride-8 map, or a width below 1.
    """

    def __init__(
        self,
        backbone: str = "mobilenetv2_050",
        num_classes: int = 21,
        *,
        output_stride: int = 16,
        channels: int = 128,
        weights: str = "none",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise UserError(f"channels is {channels}; it must be 1 or more")
        self.backbone = Backbone(backbone, output_stride, weights)
        stages, high = self.backbone.stages, self.backbone.high
        strides = [stage.stride for stage in stages]
        if 8 not in strides[:-1]:
            raise UserError(
                f"backbone {backbone!r} has maps at strides {strides}; LR-ASPP needs one at "
                "stride 8 before the deepest: choose another backbone or stride"
            )
        self._low = strides.index(8)
        self.reduce = nn.Sequential(
            nn.Conv2d(high.channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.scale = nn.Conv2d(high.channels, channels, 1, bias=False)
        self.low_classifier = nn.Conv2d(stages[self._low].channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(channels, num_classes, 1)
        self.maps = {
            LOGITS: MapInfo(num_classes, 8),
            **dict(zip(STAGES, stages, strict=False)),
            "head": MapInfo(channels, 8),
        }

    def forward(self, image: Tensor) -> SegOutput:
        stages = self.backbone(image)
        low, high = stages[self._low], stages[-1]
        weight = self.scale(high.mean((2, 3), keepdim=True)).sigmoid()
        head = resize(self.reduce(high) * weight, low.shape[-2:], align_corners=False)
        logits = self.low_classifier(low) + self.high_classifier(head)
        return SegOutput(logits, {**dict(zip(STAGES, stages, strict=False)), "head": head})
