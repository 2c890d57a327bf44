"""Cost of networks: parameters, megabytes, operations, and time of a forward pass."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aicsd.formats import format_of
from aicsd.models import Segmenter
from aicsd.models.exported import ExportedSegmenter
from aicsd.models.maps import evaluating

REPEATS = 15
ENOUGH_SECONDS = 2.0
"""Time for each network, unless one pass takes longer."""


@dataclass(frozen=True)
class PassCost:
    """Cost of one image of ``height`` x ``width`` pixels.

    Args:
        parameters: number of parameters of the whole network; 0 for a file without that number.
        gmacs: see :func:`gmacs`.
        milliseconds: shortest time of a forward pass with batch size 1.
        device: device of the measurement.
    """

    parameters: int
    gmacs: float | None
    milliseconds: float
    height: int
    width: int
    device: str


def measure_costs(models: Mapping[str, Segmenter], height: int, width: int) -> dict[str, PassCost]:
    """Cost of each model on an empty image, on the device where it is."""
    image = torch.zeros((1, 3, height, width), dtype=torch.uint8)
    seconds = time_passes(models, image, REPEATS, ENOUGH_SECONDS)
    return {
        name: PassCost(
            model.num_parameters(),
            gmacs(model, width, height),
            1000 * min(seconds[name]),
            height,
            width,
            model.device.type,
        )
        for name, model in models.items()
    }


def gmacs(model: Segmenter, width: int, height: int) -> float | None:
    """10^9 multiply-adds of the convolutions and matrix products of one image's forward pass.

    Half of what ``torch.utils.flop_counter`` counts, which takes a multiply-add for two operations.
    Normalisation, activations and resizing are not in it. They are counted in a pass without data,
    apart from the timed ones, or on an empty image if the network depends on values.
    None for an exported model, whose operations PyTorch does not see.
    """
    if isinstance(model, ExportedSegmenter):
        return None
    size = (height, width)
    try:
        return _multiply_adds(model, size, torch.device("meta")) / 1e9
    except (RuntimeError, TypeError):  # values that are not there
        return _multiply_adds(model, size, model.device) / 1e9


def _multiply_adds(model: Segmenter, size: tuple[int, int], device: torch.device) -> float:
    # without gradients: the counter fails on a parameter that is handed to a module
    counted = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    image = torch.zeros((1, 3, *size), dtype=torch.uint8, device=device)
    # not every fused kernel of attention is known to the counter
    products = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), products:
        counted(image)
    return float(counter.get_total_flops()) / 2


def megabytes(model: Segmenter) -> float:
    """10^6 bytes of the weights in memory, or of an exported model's file."""
    if isinstance(model, ExportedSegmenter):
        return format_of(model.net.path).bytes(model.net.path) / 1e6
    held = (*model.net.parameters(), *model.net.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in held) / 1e6


def time_passes(
    models: Mapping[str, Segmenter],
    images: torch.Tensor,
    repeats: int,
    enough: float = float("inf"),
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of forward passes in evaluation mode, the models taking turns.

    Args:
        models: each on any device.
        images: (B, 3, H, W) uint8 on the CPU; bringing them to the device is timed too.
        repeats: see :func:`take_turns`.
        enough: see :func:`take_turns`.
        advance: see :func:`take_turns`.
    """
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        passes = {name: partial(_forward, model, images) for name, model in models.items()}
        return take_turns(passes, repeats, enough, advance)


def _forward(model: Segmenter, images: torch.Tensor) -> None:
    model(images.to(model.device))
    synchronize(model.device)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done its work; a CPU has done it already."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    enough: float = float("inf"),
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every call of each candidate, ``repeats`` of them after one to warm up.

    The candidates take turns, so that a slow moment of the machine does not fall on one of them.

    Args:
        candidates: by name.
        repeats: calls of each that count.
        enough: seconds for each candidate after which no further turn begins.
        advance: called after every call of a candidate, outside of its time.
    """
    for run in candidates.values():
        run()
        advance()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.monotonic() + enough * len(candidates)
    for _ in range(repeats):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
            advance()
        if time.monotonic() > end:
            break
    return seconds
