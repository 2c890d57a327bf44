"""A network of four convolutions with what makes exports hard: strides, pooling, odd sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES
from torch import Tensor, nn

from aicsd.data import Classes
from aicsd.models import Segmenter

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (200, 30, 0), (0, 30, 200)))


class TinyNetwork(nn.Module):
    """Logits at stride 4, with a batch norm, a dilated convolution and image-level pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2)
        self.classifier = nn.Conv2d(24, len(CLASS_NAMES), 1)

    def forward(self, image: Tensor) -> Tensor:
        low = F.relu(self.second(F.relu6(self.norm(self.first(image)))))
        deep = F.relu(self.deep(low))
        pooled = deep.mean((2, 3), keepdim=True).expand(-1, -1, *low.shape[-2:])
        size = (low.shape[-2], low.shape[-1])
        resized = F.interpolate(deep, size, mode="bilinear", align_corners=True)
        logits: Tensor = self.classifier(torch.cat([low, resized, pooled], dim=1))
        return logits


def tiny_model(seed: int = 20) -> Segmenter:
    """The network for three classes, in evaluation mode, with weights of a seed.

    With those of seed 20, each class has a fourth of a photo or more, so that other colours or
    another layout of the input change the labels.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNetwork()
        net.norm.get_buffer("running_mean").uniform_(-0.5, 0.5)
        net.norm.get_buffer("running_var").uniform_(0.5, 1.5)
    return Segmenter(net, CLASSES).eval()
