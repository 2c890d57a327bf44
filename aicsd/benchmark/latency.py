"""How long models take for a forward pass, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from aicsd.benchmark.counts import gmacs
from aicsd.benchmark.timing import synchronize, take_turns
from aicsd.errors import UserError
from aicsd.models import Segmenter


@dataclass(frozen=True)
class Latency:
    """Of one model; seconds of a batch."""

    minimum: float
    median: float
    images_per_second: float
    """At the median."""
    parameters: int
    gmacs: float
    """10^9 multiply-adds of one image."""


def measure_latency(
    models: Mapping[str, Segmenter], *, size: tuple[int, int], batch: int = 1, repeats: int = 20
) -> dict[str, Latency]:
    """Forward passes from uint8 images to logits at stride 4, the models taking turns.

    Args:
        models: in evaluation mode, all on one device.
        size: width and height of the images in pixels.
        batch: images a pass.
        repeats: passes of each model that count, after one to warm up.

    Raises:
        UserError: a number below 1.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    width, height = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    seconds = take_turns(
        {name: partial(_forward, model, images) for name, model in models.items()}, repeats
    )
    return {
        name: Latency(
            min(seconds[name]),
            median(seconds[name]),
            batch / median(seconds[name]),
            model.num_parameters(),
            gmacs(model, width, height),
        )
        for name, model in models.items()
    }


@torch.inference_mode()
def _forward(model: Segmenter, images: torch.Tensor) -> None:
    device = model.device
    model(images.to(device))
    synchronize(device)
