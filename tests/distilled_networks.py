"""Small networks, batches and oracles for tests of the training step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from conftest import CLASS_NAMES, TINY_MODEL
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.models import InputSpec, ModelConfig, Segmenter, build_model
from aicsd.models.input_spec import IMAGENET
from aicsd.types import IGNORE_INDEX, Batch, SegOutput

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


class Net(nn.Module):
    """Strided convolution, batch norm and dropout: everything that a careless step disturbs."""

    def __init__(self, stride: int = 4, classes: int = 3, seed: int = 0, form: str = "out") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(6, classes, 1)
        nn.init.normal_(self.classifier.weight, std=2.0)
        self.form = form
        self.seen: Tensor | None = None

    def forward(self, image: Tensor) -> object:
        self.seen = image.detach()
        logits = self.classifier(self.dropout(self.norm(self.conv(image)).relu()))
        return {
            "output": SegOutput(logits, {"x": image}),
            "tensor": logits,
            "out": {"out": logits, "aux": logits * 0},
            "object": SimpleNamespace(logits=logits),
            "list": [logits],
        }[self.form]


def make_batch(size: tuple[int, int] = (32, 48), count: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (count, 3, *size), generator=generator).to(torch.uint8)
    mask = torch.randint(3, (count, *size), generator=generator)
    valid = torch.ones(count, *size, dtype=torch.bool)
    valid[0, 20:] = False
    valid[1, :, 30:] = False
    mask[~valid] = IGNORE_INDEX
    mask[:, 3:6] = IGNORE_INDEX
    return Batch(image, mask, valid)


def tiny(seed: int = 0, **changes: object) -> Segmenter:
    torch.manual_seed(seed)
    return build_model(ModelConfig(**{**TINY_MODEL, **changes}), CLASSES)


def aligned(net: nn.Module, classes: Classes, spec: InputSpec = IMAGENET) -> Segmenter:
    return Segmenter(net, classes, spec, align_corners=True)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, as one matrix for each axis."""

    def axis(short: int, long: int) -> Tensor:
        matrix = np.zeros((long, short))
        for row in range(long):
            position = row * (short - 1) / (long - 1)
            left = min(int(position), short - 2)
            matrix[row, left] = 1 - (position - left)
            matrix[row, left + 1] = position - left
        return torch.from_numpy(matrix)

    rows, columns = axis(maps.shape[2], size[0]), axis(maps.shape[3], size[1])
    return torch.einsum("Yy,bcyx,Xx->bcYX", rows, maps.double(), columns)
