"""What a network costs: operations, and the time of one image."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from aicsd.models import Segmenter

REPEATS = 5
ENOUGH_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """Of one image of ``height`` x ``width`` pixels.

    Args:
        parameters: of the whole network.
        gmacs: multiply-accumulates of convolutions and matrix products, in 10^9.
        milliseconds: median time of a forward pass with batch size 1, after one to warm up.
        device: that the time was taken on.
    """

    parameters: int
    gmacs: float
    milliseconds: float
    height: int
    width: int
    device: str


@torch.inference_mode()
def measure_cost(model: Segmenter, height: int, width: int) -> Cost:
    """Cost of ``model`` on an empty image, on the device where the model is.

    The time is a rough one: at most 5 passes, on a machine that may do other work.
    """
    device = model.mean.device
    image = torch.zeros((1, 3, height, width), dtype=torch.uint8, device=device)
    was_training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:  # this pass warms up, too
            model(image)
        times: list[float] = []
        while len(times) < REPEATS and sum(times) < ENOUGH_SECONDS:
            _wait(device)
            begin = time.perf_counter()
            model(image)
            _wait(device)
            times.append(time.perf_counter() - begin)
    finally:
        model.train(was_training)
    return Cost(
        model.num_parameters(), counter.get_total_flops() / 2e9, 1000 * statistics.median(times),
        height, width, device.type,
    )  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
