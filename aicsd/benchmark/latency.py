"""Latency of models, measured with interleaved forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch

from aicsd.errors import UserError, enough_memory
from aicsd.evaluation.cost import gmacs, megabytes, time_passes
from aicsd.models import Segmenter
from aicsd.models.exported import ExportedSegmenter
from aicsd.terminal import progress_bar


@dataclass(frozen=True)
class Latency:
    """Latency of one model, in seconds per batch, and its size."""

    minimum: float
    median: float
    images_per_second: float
    """Throughput at the median."""
    parameters: int
    """0 for a file without that number."""
    gmacs: float | None
    """10^9 multiply-adds of one image; None for an exported model."""
    megabytes: float
    """10^6 bytes of the weights in memory, or of an exported model's file."""
    gives: str
    """Output of a forward pass: ``native`` logits, at the network's own stride, or for an
    exported model what it was exported to give."""


def measure_latency(
    models: Mapping[str, Segmenter], *, size: tuple[int, int], batch: int = 1, repeats: int = 20
) -> dict[str, Latency]:
    """Time forward passes from uint8 images to what a model gives, the models taking turns.

    Args:
        models: in evaluation mode, all on one device; exported ones on a CPU.
        size: width and height of the images in pixels.
        batch: images a pass.
        repeats: passes of each model that count, after one to warm up.

    Raises:
        UserError: a number below 1, or an exported model that takes images of another size alone or
            runs on another device.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    width, height = size
    for name, model in models.items():
        _check_exported(name, model, (height, width))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
    with progress_bar() as bar:
        task = bar.add_task("timing passes", total=(repeats + 1) * len(models), note="")
        with enough_memory(f"for {batch} x {width}x{height} pixels: lower --batch or --size"):
            seconds = time_passes(models, images, repeats, advance=lambda: bar.advance(task))
    return {
        name: Latency(
            min(seconds[name]),
            median(seconds[name]),
            batch / median(seconds[name]),
            model.num_parameters(),
            gmacs(model, width, height),
            megabytes(model),
            model.output if isinstance(model, ExportedSegmenter) else "native",
        )
        for name, model in models.items()
    }


def _check_exported(name: str, model: Segmenter, size: tuple[int, int]) -> None:
    if not isinstance(model, ExportedSegmenter):
        return
    if model.device.type != "cpu":
        raise UserError(f"{name} is an exported model, which runs on the CPU: give --device cpu")
    if model.input.size not in (None, size):
        assert model.input.size is not None
        height, width = model.input.size
        raise UserError(f"{name} takes images of {width}x{height} only: give that --size")
