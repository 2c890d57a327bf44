"""The published DeepLabV3+ in plain PyTorch, as an oracle: its own layout, key names and order.

Written from a description of the architecture. Blocks begin with their ReLU and end with the bare
sum, MobileNetV2 pads before the expansion, and the logits come at the size of the input: all
unlike the package.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int = 1, *, s: int = 1, d: int = 1, p: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, s, d * (k // 2) if p is None else p, d, bias=False)


class Block(nn.Module):
    """Block of a ResNet: two 3x3 convolutions, or 1x1, 3x3, 1x1."""

    def __init__(self, i: int, planes: int, stride: int, rate: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * planes if bottleneck else planes
        self.conv1 = conv(i, planes) if bottleneck else conv(i, planes, 3, s=stride, d=rate)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3, s=stride if bottleneck else 1, d=rate)
        self.bn2 = nn.BatchNorm2d(planes)
        if bottleneck:
            self.conv3, self.bn3 = conv(planes, out), nn.BatchNorm2d(out)
        if stride != 1 or i != out:
            self.downsample = nn.Sequential(conv(i, out, s=stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(F.relu(y)))
        result: Tensor = y + (self.downsample(x) if hasattr(self, "downsample") else x)
        return result


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], bottleneck: bool, output_stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, s=2), nn.BatchNorm2d(64)
        strides = {16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}[output_stride]
        rates = {16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}[output_stride]
        i, stages = 64, []
        for stage, (depth, stride, rate) in enumerate(zip(depths, strides, rates, strict=True)):
            blocks = []
            for number in range(depth):
                grid = (1, 2, 4)[number] if bottleneck and stage == 3 else 1
                planes = 64 * 2**stage
                step = stride if number == 0 else 1
                blocks.append(Block(i, planes, step, rate * grid, bottleneck))
                i = 4 * planes if bottleneck else planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = (256, 2048) if bottleneck else (64, 512)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        low = self.layer1(x)
        return F.relu(low), F.relu(self.layer4(self.layer3(self.layer2(low))))


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int, rate: int, expansion: int) -> None:
        super().__init__()
        wide = i * expansion
        expand = [conv(i, wide), nn.BatchNorm2d(wide), nn.ReLU6()] if expansion > 1 else []
        depthwise = nn.Conv2d(wide, wide, 3, stride, 0, rate, groups=wide, bias=False)
        project = [conv(wide, o), nn.BatchNorm2d(o)]
        self.conv = nn.Sequential(*expand, depthwise, nn.BatchNorm2d(wide), nn.ReLU6(), *project)
        self.rate, self.residual = rate, stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, [self.rate] * 4))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    channels = (24, 320)

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(conv(3, 32, 3, s=2), nn.BatchNorm2d(32), nn.ReLU6())
        ]
        groups = [
            (16, 1, 1),
            (24, 2, 2),
            (32, 3, 2),
            (64, 4, 2),
            (96, 3, 1),
            (160, 3, 2),
            (320, 1, 1),
        ]
        i, reached, behind = 32, 2, 1
        for o, depth, stride in groups:
            rate = 1
            if reached == output_stride:
                rate, behind, stride = behind, behind * stride, 1
            else:
                reached *= stride
            for number in range(depth):
                step = stride if number == 0 else 1
                layers.append(Inverted(i, o, step, rate, 1 if o == 16 else 6))
                i = o
        self.features = nn.Sequential(*layers)
        # the same layers under two more names, as in the released code
        self.low_level_features, self.high_level_features = self.features[:4], self.features[4:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low_level_features(x)
        return low, self.high_level_features(low)


class Branch(nn.Module):
    def __init__(self, i: int, kernel: int, rate: int) -> None:
        super().__init__()
        self.atrous_conv, self.bn = conv(i, 256, kernel, d=rate), nn.BatchNorm2d(256)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class Pyramid(nn.Module):
    def __init__(self, i: int, output_stride: int) -> None:
        super().__init__()
        for number, rate in enumerate((0, 6, 12, 18)):
            branch = Branch(i, 3 if rate else 1, max(rate * 16 // output_stride, 1))
            setattr(self, f"aspp{number + 1}", branch)
        pool = [nn.AdaptiveAvgPool2d(1), conv(i, 256), nn.BatchNorm2d(256), nn.ReLU()]
        self.global_avg_pool = nn.Sequential(*pool)
        self.conv1, self.bn1 = conv(1280, 256), nn.BatchNorm2d(256)

    def forward(self, x: Tensor) -> Tensor:
        maps = [getattr(self, f"aspp{number}")(x) for number in (1, 2, 3, 4)]
        maps.append(up(self.global_avg_pool(x), x))
        return F.relu(self.bn1(self.conv1(torch.cat(maps, 1))))


class Decoder(nn.Module):
    def __init__(self, low: int, classes: int, dropout: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(low, 48), nn.BatchNorm2d(48)
        layers: list[nn.Module] = []
        for (i, o), p in zip(pairwise((304, 256, 256)), (0.5, 0.1), strict=True):
            layers += [conv(i, o, 3), nn.BatchNorm2d(o), nn.ReLU()]
            layers += [nn.Dropout(p)] if dropout else []
        self.last_conv = nn.Sequential(*layers, nn.Conv2d(256, classes, 1))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        low = F.relu(self.bn1(self.conv1(low)))
        logits: Tensor = self.last_conv(torch.cat([up(high, low), low], 1))
        return logits


RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
"""Depths of the stages, and whether the blocks are bottlenecks."""


class DeepLab(nn.Module):
    """(B, 3, H, W) -> logits (B, C, H, W)."""

    def __init__(
        self, backbone: str, classes: int = 21, output_stride: int = 16, dropout: bool = True
    ) -> None:
        super().__init__()
        self.backbone: ResNet | MobileNetV2
        if backbone == "mobilenetv2_100":
            self.backbone = MobileNetV2(output_stride)
        else:
            self.backbone = ResNet(*RESNETS[backbone], output_stride)
        low, high = self.backbone.channels
        self.aspp = Pyramid(high, output_stride)
        self.decoder = Decoder(low, classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.backbone(x)
        return up(self.decoder(self.aspp(high), low), x)


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def random_deeplab(
    backbone: str, classes: int = 21, output_stride: int = 16, dropout: bool = True, seed: int = 0
) -> DeepLab:
    """A network in evaluation mode, with batch-norm weights and statistics that all matter."""
    torch.manual_seed(seed)
    # without the default initialisation, which takes longer than everything else
    with torch.device("meta"):
        net = DeepLab(backbone, classes, output_stride, dropout)
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(std=(2 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.data.normal_(std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.4, 0.8)
            module.bias.data.normal_(std=0.2)
            module.get_buffer("running_mean").normal_(std=0.2)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            module.get_buffer("num_batches_tracked").fill_(7)
    return net.eval()
