"""Cost of the terms of every method beside the cross entropy: time, memory, parameters.

    python -m benchmarks.terms

8 crops of 240x240, 11 classes, teacher and student DeepLabV3+ on MobileNetV2 1.0 and 0.5, random
weights. The networks run once; forward and backward pass of the terms are measured on their maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aicsd.data.classes_file import distinct_color
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.methods import list_methods, load_recipe
from aicsd.models import ModelConfig, build_model
from aicsd.teacher import Teacher
from aicsd.types import Batch, SegOutput
from benchmarks.common import fastest, report
from benchmarks.losses import peak_bytes

BATCH, SIDE, CLASSES = 8, 240, 11
LABELS = "cross_entropy"
ALONE = "none"
HEADER = ["method", "terms", "ms", "cross entropy = 1", "memory, MiB", "trained parameters"]
SMALL = {"aspp_channels": 64, "decoder_channels": 64, "dropout": 0.0}


class Measured:
    """The terms of a method on the maps of two networks."""

    def __init__(self, method: str, distiller: Distiller) -> None:
        self.method = method
        self.terms = {
            name: term
            for name, term in distiller.terms.items()
            if (name == LABELS) == (method == ALONE)
        }

    @property
    def parameters(self) -> list[Tensor]:
        held = (parameter for term in self.terms.values() for parameter in term.parameters())
        return [parameter for parameter in held if parameter.requires_grad]

    def run(self, student: SegOutput, teacher: SegOutput, batch: Batch) -> None:
        values = [term(student, teacher, batch, 0.5) for term in self.terms.values()]
        maps = [student.logits, *student.features.values()]
        torch.autograd.grad(torch.stack(values).sum(), [*maps, *self.parameters], allow_unused=True)


def leaf(maps: Tensor) -> Tensor:
    return maps.detach().requires_grad_()


def main() -> None:
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(CLASSES))
    classes = Classes(names, tuple(distinct_color(number) for number in range(CLASSES)))
    student = build_model(ModelConfig("mobilenetv2_050", **SMALL), classes)  # type: ignore[arg-type]
    model = build_model(ModelConfig("mobilenetv2_100"), classes)
    teacher = Teacher(model, classes)
    image = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    mask = torch.randint(0, CLASSES, (BATCH, SIDE // 16, SIDE // 16))
    mask = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    batch = Batch(image, mask, mask >= 0)
    with torch.no_grad():
        found, target = student(image), teacher(image)
    own = found._replace(
        logits=leaf(found.logits), features={key: leaf(v) for key, v in found.features.items()}
    )
    measured = [
        Measured(method, Distiller(student, load_recipe(method), teacher))
        for method in (ALONE, *(method for method in list_methods() if method != ALONE))
    ]
    runs: dict[str, Callable[[], object]] = {
        each.method: partial(each.run, own, target, batch) for each in measured
    }
    seconds = fastest(runs)
    memory = {method: peak_bytes(run) for method, run in runs.items()}
    rows = []
    for each in measured:
        time, peak = seconds[each.method], memory[each.method]
        count = sum(parameter.numel() for parameter in each.parameters)
        rows.append(
            [
                f"`{each.method}`",
                ", ".join(each.terms),
                f"{1000 * time:.1f}",
                f"{time / seconds[ALONE]:.2f}",
                "" if peak is None else f"{peak / 2**20:.0f}",
                f"{count:,}" if count else "",
            ]
        )
    figures = {
        "batch": BATCH,
        "side": SIDE,
        "classes": CLASSES,
        "seconds": seconds,
        "bytes": memory,
    }
    report("terms", figures, HEADER, rows)


if __name__ == "__main__":
    main()
