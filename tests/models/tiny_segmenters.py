"""Tiny networks whose weights are not their initial ones, for the tests of files of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from conftest import CLASS_NAMES, TINY_MODEL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.types import SegOutput

CLASSES = Classes(CLASS_NAMES, ((1, 2, 3), (255, 0, 0), (0, 0, 255)))
OTHER_CLASSES = Classes(("a", "b"), ((0, 0, 0), (9, 9, 9)))
BACKBONE = "mobilenetv2_035"
MOBILENET = {**TINY_MODEL, "backbone": BACKBONE}


def build(classes: Classes = CLASSES, seed: int = 0, **changes: Any) -> Segmenter:
    """A network whose batch-norm statistics and classifier bias are not their initial values."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(**{**MOBILENET, **changes}), classes)
    randomise(model.net)
    return model


def randomise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.num_batches_tracked.fill_(7)


def timm_weights(path: Path, name: str = BACKBONE) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model = timm.create_model(name)
    randomise(model)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path)
    return state


def random_image(height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def logits(model: Segmenter) -> Tensor:
    image = torch.from_numpy(random_image()).permute(2, 0, 1)[None]
    with torch.no_grad():
        output: SegOutput = model.eval()(image)
    return output.logits


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["aicsd"])
    return header
