"""Measurement and reports of all benchmarks: ratios within one run, on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aicsd.benchmark.timing import machine
from aicsd.distiller import Distiller
from aicsd.engine.device import open_fabric
from aicsd.engine.step import Training, train_step
from aicsd.evaluation.cost import take_turns
from aicsd.files import write_text
from aicsd.run_config import DistillConfig, OptimizerConfig, Precision
from aicsd.types import Batch

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "performance.md"


class LogitsOf(nn.Module):
    """A network of the package as one that returns logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> (B, C, h, w)."""
        logits: Tensor = self.net(image).logits
        return logits


def training_step(
    distiller: Distiller,
    settings: OptimizerConfig,
    batches: Iterator[Batch],
    accelerator: str = "cpu",
    precision: Precision = "32-true",
) -> Callable[[], object]:
    """The step that a training does, on the next batch.

    Args:
        distiller: gets trained.
        settings: settings of the optimizer.
        batches: one for every call.
        accelerator: as in a config.
        precision: as in a config.
    """
    fabric = open_fabric(DistillConfig(run="-", accelerator=accelerator, precision=precision))
    fabric.launch()
    training = Training(settings, 0, distiller, fabric)
    return lambda: train_step(training, batches, 1, 0.5)


def fastest(candidates: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Seconds of each candidate: the minimum over ``repeats``, after one call to warm up.

    The candidates take turns, so that a slow moment of the machine does not fall on one of them.
    """
    return {name: min(seconds) for name, seconds in take_turns(candidates, repeats).items()}


def report(
    name: str, figures: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Write ``results/NAME.json``, print the table and put it in its place in the page.

    The page has ``<!-- table: benchmarks.NAME -->`` and ``<!-- end of table -->`` around it.
    """
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), **figures}
    write_text(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    told = machine()
    note = f"{told['cpu']}, {told['cores']} cores, {told['threads']} threads, torch {told['torch']}"
    text = "\n".join([*lines, "", f"({note})"])
    print(text)
    begin, end = f"<!-- table: benchmarks.{name} -->", "<!-- end of table -->"
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE} has no place for the table: {begin} ... {end}")
    write_text(PAGE, f"{head}{begin}\n\n{text}\n\n{end}{tail}")
