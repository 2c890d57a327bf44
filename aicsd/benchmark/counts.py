"""Calculated cost of a training step: kept bytes and operations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from aicsd.data.protocol import Classes
from aicsd.models import ModelConfig, build_model


def kept_bytes_and_flops(
    config: ModelConfig, classes: Classes, batch: int, side: int, trains: bool
) -> tuple[int, int, int]:
    """Cost of a step on square images, calculated on tensors without storage.

    Args:
        config: the network; its starting weights are not read.
        classes: predicted classes.
        batch: images a step.
        side: side of an image in pixels.
        trains: forward and backward of a student; False: forward of a teacher.

    Returns:
        Bytes kept for the backward pass, floating-point operations (two to a multiply-add), and
        bytes of the weights.
    """
    with torch.device("meta"):
        model = build_model(replace(config, weights="none"), classes)
        image = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    model.train(trains).requires_grad_(trains)
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.set_grad_enabled(trains),
    ):
        logits = model(image).logits
        if trains:
            logits.sum().backward()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return sum(kept.values()), counter.get_total_flops(), weights
