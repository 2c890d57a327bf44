"""Cost of the ICS term relative to a student's training step, over the number of classes.

    python -m benchmarks.ics_share

The step is that of the student alone (forward, cross entropy, backward, optimizer), without teacher
and data; the term is measured apart, forward and backward, on logits at stride 4.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aicsd.data.classes_file import distinct_color
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.losses import icsd_loss
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, build_model
from aicsd.types import Batch
from benchmarks.common import fastest, report, training_step
from benchmarks.step import SETTINGS


class Case(NamedTuple):
    """A student and what it trains on."""

    model: ModelConfig
    batch: int
    side: int


CASES = (
    Case(ModelConfig("resnet18"), 2, 257),
    Case(
        ModelConfig("mobilenetv2_050", aspp_channels=64, decoder_channels=64, dropout=0.0), 8, 240
    ),
)
CLASSES = (2, 21, 60, 150)


def student_step(case: Case, count: int) -> Callable[[], object]:
    """A whole step of the student alone."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(count))
    classes = Classes(names, tuple(distinct_color(number) for number in range(count)))
    distiller = Distiller(build_model(case.model, classes), load_recipe("none"), None)
    image = torch.randint(0, 256, (case.batch, case.side, case.side, 3)).to(torch.uint8)
    mask = torch.randint(0, count, (case.batch, case.side, case.side))
    batch = Batch(image.permute(0, 3, 1, 2), mask, valid=mask >= 0)
    return training_step(distiller, SETTINGS, repeat(batch))


def term(case: Case, count: int) -> Callable[[], tuple[Tensor, ...]]:
    """The ICS term and its gradient on logits at stride 4."""
    side = -(-case.side // 4)
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, case.batch, count, side, side, generator=random)
    student.requires_grad_()
    return lambda: torch.autograd.grad(icsd_loss(student, teacher), student)


def main() -> None:
    rows: list[list[str]] = []
    figures: list[dict[str, Any]] = []
    for case in CASES:
        for count in CLASSES:
            parts: dict[str, Callable[[], object]] = {
                "step": student_step(case, count),
                "term": term(case, count),
            }
            seconds = fastest(parts, repeats=5)
            share = seconds["term"] / (seconds["step"] + seconds["term"])
            rows.append(
                [
                    case.model.backbone,
                    f"{case.batch}x{case.side}x{case.side}",
                    str(count),
                    f"{1000 * seconds['step']:.0f}",
                    f"{1000 * seconds['term']:.1f}",
                    f"{100 * share:.1f} %",
                ]
            )
            figures.append(
                {
                    "backbone": case.model.backbone,
                    "batch": case.batch,
                    "side": case.side,
                    "classes": count,
                    "seconds": seconds,
                    "share": share,
                }
            )
    header = ["student", "images", "classes", "its step, ms", "ICS term, ms", "share of both"]
    report("ics_share", {"cases": figures}, header, rows)


if __name__ == "__main__":
    main()
