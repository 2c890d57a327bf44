"""What networks cost: operations, and the time of one image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from aicsd.models import Segmenter

REPEATS = 15
ENOUGH_SECONDS = 2.0
"""For each network, unless one pass takes longer."""


@dataclass(frozen=True)
class Cost:
    """Of one image of ``height`` x ``width`` pixels.

    Args:
        parameters: of the whole network.
        gmacs: multiply-accumulates of convolutions and matrix products, in 10^9.
        milliseconds: shortest time of a forward pass with batch size 1.
        device: that the time was taken on.
    """

    parameters: int
    gmacs: float
    milliseconds: float
    height: int
    width: int
    device: str


@torch.inference_mode()
def measure_costs(models: Mapping[str, Segmenter], height: int, width: int) -> dict[str, Cost]:
    """Cost of each model on an empty image, on the device where it is.

    The models take turns, so that a slow moment of the machine does not fall on one of them.
    """
    with ExitStack() as stack:
        gmacs, shortest = {}, {}
        for name, model in models.items():
            stack.enter_context(_evaluating(model))
            with FlopCounterMode(display=False) as counter:  # this pass warms up, too
                _seconds(model, height, width)
            gmacs[name] = counter.get_total_flops() / 2e9
            shortest[name] = _seconds(model, height, width)
        end = time.monotonic() + ENOUGH_SECONDS * len(models)
        for _ in range(REPEATS):
            for name, model in models.items():
                shortest[name] = min(shortest[name], _seconds(model, height, width))
            if time.monotonic() > end:
                break
    return {
        name: Cost(
            model.num_parameters(), gmacs[name], 1000 * shortest[name], height, width,
            model.device.type,
        )
        for name, model in models.items()
    }  # fmt: skip


@contextmanager
def _evaluating(model: Segmenter) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _seconds(model: Segmenter, height: int, width: int) -> float:
    device = model.device
    image = torch.zeros((1, 3, height, width), dtype=torch.uint8, device=device)
    _wait(device)
    begin = time.perf_counter()
    model(image)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
