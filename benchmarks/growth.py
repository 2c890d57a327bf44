"""Time and memory of the ICS term over classes, pixels and batch, forward and backward.

python -m benchmarks.growth
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
import torch
from torch import Tensor

from aicsd.losses import icsd_loss
from benchmarks.common import REPOSITORY, fastest, report
from benchmarks.losses import peak_in_maps

mpl.use("Agg")

import matplotlib.pyplot as plt

PICTURE = REPOSITORY / "docs" / "images" / "growth.png"
SERIES: dict[str, list[tuple[int, int, int]]] = {
    "classes": [(1, classes, 64) for classes in (2, 8, 21, 60, 150, 400, 1000)],
    "pixels": [(1, 21, side) for side in (65, 129, 257, 513, 1025)],
    "batch": [(batch, 21, 129) for batch in (1, 2, 4, 8, 16)],
}
"""(B, C, side of a square map)."""
THEORY = {"classes": "1 to 2: reading is C N, products are C² N", "pixels": "1", "batch": "1"}


def logits(shape: tuple[int, int, int], seed: int) -> Tensor:
    batch, classes, side = shape
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, classes, side, side, generator=random)


def run_of(shape: tuple[int, int, int]) -> Callable[[], object]:
    student, teacher = logits(shape, 0).requires_grad_(), logits(shape, 1)
    return lambda: torch.autograd.grad(icsd_loss(student, teacher), student)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the values over the sizes, both as logarithms, over the larger half of the sizes."""
    middle = len(sizes) // 2
    xs, ys = [math.log(x) for x in sizes[middle:]], [math.log(y) for y in values[middle:]]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - mean_x) ** 2 for x in xs)


def main() -> None:
    rows, figures = [], {}
    figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
    for axis, (name, shapes) in zip(axes, SERIES.items(), strict=True):
        place = {"classes": 1, "pixels": 2, "batch": 0}[name]
        sizes = [shape[place] ** (2 if name == "pixels" else 1) for shape in shapes]
        seconds = [fastest({"": run_of(shape)}, repeats=5)[""] for shape in shapes]
        maps = [peak_in_maps(run_of(shape), logits(shape, 0)) or math.nan for shape in shapes]
        bytes_used = [
            count * 4 * batch * classes * side**2
            for count, (batch, classes, side) in zip(maps, shapes, strict=True)
        ]
        fits = exponent(sizes, seconds), exponent(sizes, bytes_used)
        for shape, time, count in zip(shapes, seconds, maps, strict=True):
            size = "x".join(map(str, (*shape, shape[-1])))
            rows.append([name, size, f"{1000 * time:.2f}", f"{count:.2f}", "", ""])
        rows.append([name, "exponent of time", f"{fits[0]:.2f}", "", THEORY[name], ""])
        rows.append([name, "exponent of memory", "", f"{fits[1]:.2f}", "1", ""])
        figures[name] = {"sizes": sizes, "seconds": seconds, "maps": maps, "exponents": fits}
        axis.loglog(sizes, [1000 * s for s in seconds], "o-", color="#0072B2", label="ms")
        axis.loglog(sizes, [b / 1e6 for b in bytes_used], "s--", color="#D55E00", label="MB")
        axis.set_xlabel(f"{name} (exponents {fits[0]:.2f}, {fits[1]:.2f})")
        axis.legend()
    figure.suptitle("ICS loss, forward and backward")
    figure.savefig(PICTURE, dpi=100)
    report(
        "growth",
        figures,
        ["over", "logits", "ms", "maps of memory", "theory"],
        [row[:5] for row in rows],
    )


if __name__ == "__main__":
    main()
