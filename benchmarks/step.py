"""A training step of AICSD against its unavoidable parts: student and one teacher forward pass.

    python -m benchmarks.step

Teacher ResNet-101, student ResNet-18, 2 images of 257x257, 21 classes, random weights. No data is
loaded: the step alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch

from aicsd.data.classes_file import distinct_color
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.run_config import OptimizerConfig
from aicsd.teacher import Teacher
from aicsd.types import Batch, Runtime
from benchmarks.baselines import released_step
from benchmarks.common import LogitsOf, fastest, report, training_step

TEACHER, STUDENT = "resnet101", "resnet18"
BATCH, SIDE, CLASSES = 2, 257, 21
RUNTIMES: tuple[Runtime, ...] = ("eager", "compiled", "openvino")
SETTINGS = OptimizerConfig(lr=1e-4)


def network(backbone: str) -> Segmenter:
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(CLASSES))
    classes = Classes(names, tuple(distinct_color(number) for number in range(CLASSES)))
    return build_model(ModelConfig(backbone), classes)


def batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    # the layout in which the loader hands images over
    image = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE), generator=random)
    return Batch(image.permute(0, 3, 1, 2), mask, valid=mask >= 0)


def fast_teacher(runtime: Runtime) -> Teacher:
    model = network(TEACHER)
    teacher = Teacher(model, model.classes)
    teacher.speed_up(runtime, SIDE)
    return teacher


def step_of(method: str, teacher: Teacher | None) -> Callable[[], object]:
    """A whole step of a training."""
    distiller = Distiller(network(STUDENT), load_recipe(method), teacher)
    return training_step(distiller, SETTINGS, repeat(batch()))


def released() -> Callable[[], None]:
    student, teacher = (LogitsOf(network(name).net) for name in (STUDENT, TEACHER))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    data = batch()
    image = (data.image.float() / 255 - 0.45).div(0.225).contiguous()
    return lambda: released_step(student, teacher, image, data.mask, optimizer)


def teacher_passes(runtimes: Sequence[Runtime]) -> dict[str, Callable[[], Any]]:
    """One teacher forward pass, without a runtime and by each of them."""
    image = batch().image
    plain = network(TEACHER).eval()
    return {
        "teacher, as it is": torch.no_grad()(lambda: plain(image.contiguous())),
        **{f"teacher, {runtime}": partial(fast_teacher(runtime), image) for runtime in runtimes},
    }


def main() -> None:
    runtimes = [r for r in RUNTIMES if r != "openvino" or importlib.util.find_spec("openvino")]
    passes = teacher_passes(runtimes)
    candidates = {
        **passes,
        "student alone": step_of("none", None),
        **{f"AICSD, {runtime}": step_of("aicsd", fast_teacher(runtime)) for runtime in runtimes},
        "released scheme": released(),
    }
    seconds = fastest(candidates, repeats=7)
    floor = seconds["student alone"] + min(seconds[name] for name in passes)
    rows = []
    for name, time in seconds.items():
        cells = [name, f"{1000 * time:.0f}", f"{time / floor:.2f}"]
        cells.append("" if name in passes else f"{seconds['released scheme'] / time:.1f}")
        rows.append(cells)
    figures = {"batch": BATCH, "side": SIDE, "classes": CLASSES, "seconds": seconds, "floor": floor}
    header = ["what", "ms", "floor = 1", "times faster than the released scheme"]
    report("step", figures, header, rows)


if __name__ == "__main__":
    main()
