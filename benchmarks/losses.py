"""Losses, forward and backward, against plain loops and PyTorch's own gradients."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses import (
    cross_entropy_and_kd_loss,
    cross_entropy_loss,
    icsd_loss,
    pixel_kd_loss,
)
from benchmarks.baselines import (
    icsd_by_autograd,
    icsd_by_loop,
    pixel_kd_by_autograd,
)
from benchmarks.common import fastest, report

HEADER = ["loss", "logits", "plain", "ms", "package, ms", "times faster", "maps", "package, maps"]
VOC, ADE, NATIVE = (2, 21, 513, 513), (2, 150, 128, 128), (2, 21, 129, 129)
M_MMAP_THRESHOLD = -3  # of mallopt


def gradient_of(loss: Callable[[], Tensor], student: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.autograd.grad(loss(), student)[0]


def draw(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and a mask at the size of the logits."""
    student = (3 * torch.randn(shape)).requires_grad_()
    mask = torch.randint(shape[1], (shape[0], *shape[2:]))
    mask[:, : shape[2] // 20] = 255
    return student, 3 * torch.randn(shape), mask


def peak_in_maps(run: Callable[[], object], student: Tensor) -> float | None:
    """:func:`peak_bytes` in logit maps."""
    peak = peak_bytes(run)
    return None if peak is None else peak / (student.numel() * student.element_size())


def peak_bytes(run: Callable[[], object]) -> int | None:
    """Largest resident memory beyond that at the start; Linux only."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not sys.platform.startswith("linux") or not reset.exists():
        return None

    def kilobytes(field: str) -> int:
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    # a map that is freed goes back to the system, so that what is resident is what is in use
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    run()  # what a first call keeps for ever, such as threads, is not the loss's
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5", encoding="utf-8")  # the peak starts again from here
    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) * 1024


@dataclass
class Comparison:
    """One row: a plain form and that of the package, both forward and backward."""

    loss: str
    against: str
    student: Tensor
    plain: Callable[[], Tensor]
    package: Callable[[], Tensor]
    once: bool = False
    """The plain form takes so long, and so much memory, that it is timed a single time."""
    seconds: dict[str, float] = field(default_factory=dict)
    maps: dict[str, float | None] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, Callable[[], Tensor]]:
        forms = {"plain": self.plain, "package": self.package}
        return {name: gradient_of(form, self.student) for name, form in forms.items()}

    @property
    def logits(self) -> str:
        return "x".join(str(length) for length in self.student.shape)

    def time(self) -> None:
        runs = self.runs
        if self.once:
            slow = runs.pop("plain")
            begin = time.perf_counter()
            slow()
            self.seconds["plain"] = time.perf_counter() - begin
        self.seconds |= fastest(runs)

    def weigh(self) -> None:
        """After all timing: it changes how memory is allocated."""
        for name, run in self.runs.items():
            skip = name == "plain" and self.once
            self.maps[name] = None if skip else peak_in_maps(run, self.student)

    def row(self) -> list[str]:
        plain, package = 1000 * self.seconds["plain"], 1000 * self.seconds["package"]
        ratio = plain / package
        times = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
        maps = ("" if value is None else f"{value:.2f}" for value in self.maps.values())
        return [
            self.loss,
            self.logits,
            self.against,
            f"{plain:.1f}",
            f"{package:.1f}",
            times,
            *maps,
        ]

    def figures(self) -> dict[str, object]:
        names = ("loss", "logits", "against", "seconds", "maps")
        return {name: getattr(self, name) for name in names}


def icsd_comparisons() -> Iterator[Comparison]:
    for shape in (VOC, ADE, NATIVE):
        student, teacher, _ = draw(shape)
        package = partial(icsd_loss, student, teacher)
        loop = partial(icsd_by_loop, student, teacher)
        yield Comparison("ICSD", "loop over pairs", student, loop, package, shape != NATIVE)
        yield Comparison(
            "ICSD", "autograd", student, partial(icsd_by_autograd, student, teacher), package
        )


def pixel_comparisons() -> Iterator[Comparison]:
    student, teacher, mask = draw(VOC)

    def plain_entropy() -> Tensor:
        return F.cross_entropy(student, mask, ignore_index=255)

    def plain() -> Tensor:
        return plain_entropy() + pixel_kd_by_autograd(student, teacher)

    def apart() -> Tensor:
        return cross_entropy_loss(student, mask) + pixel_kd_loss(student, teacher)

    def together() -> Tensor:
        return torch.stack(cross_entropy_and_kd_loss(student, teacher, mask)).sum()

    entropy = partial(cross_entropy_loss, student, mask)
    plain_kd = partial(pixel_kd_by_autograd, student, teacher)
    for name, slow, quick in (
        ("cross entropy", plain_entropy, entropy),
        ("pixel KD", plain_kd, partial(pixel_kd_loss, student, teacher)),
        ("cross entropy + KD", plain, apart),
        ("the same in one pass", plain, together),
        (
            "cross entropy + KD + ICSD",
            lambda: plain() + icsd_by_autograd(student, teacher),
            lambda: apart() + icsd_loss(student, teacher),
        ),
        (
            "the same, two in one pass",
            lambda: plain() + icsd_by_autograd(student, teacher),
            lambda: together() + icsd_loss(student, teacher),
        ),
    ):
        yield Comparison(name, "autograd", student, slow, quick)


def native_terms() -> dict[str, float]:
    """Cost of ICSD and KD at stride 4 beside the cross entropy at the input's resolution."""
    student, teacher, _ = draw(NATIVE)
    _, _, mask = draw(VOC)

    def entropy(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        large = F.interpolate(student, size=VOC[2:], mode="bilinear", align_corners=True)
        return loss(large, mask)

    def distilled() -> Tensor:
        terms = pixel_kd_loss(student, teacher) + icsd_loss(student, teacher)
        return entropy(cross_entropy_loss) + terms

    candidates = {
        "plain cross entropy": lambda: entropy(
            lambda z, m: F.cross_entropy(z, m, ignore_index=255)
        ),
        "cross entropy": lambda: entropy(cross_entropy_loss),
        "cross entropy, ICSD and KD": distilled,
        "ICSD and KD": lambda: pixel_kd_loss(student, teacher) + icsd_loss(student, teacher),
    }
    return fastest({name: gradient_of(loss, student) for name, loss in candidates.items()}, 15)


def resolutions(smoothness: int) -> dict[str, float]:
    """Gradient of ICSD by logits of 129 x 129, compared there and upsampled to 513 x 513.

    The logits are random ones of ``smoothness`` x ``smoothness``, upsampled.
    """
    student, teacher = (
        F.interpolate(
            5 * torch.randn(2, 21, smoothness, smoothness),
            size=NATIVE[2:],
            mode="bicubic",
            align_corners=True,
        ).requires_grad_()
        for _ in range(2)
    )

    def upsample(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=VOC[2:], mode="bilinear", align_corners=True)

    native = gradient_of(lambda: icsd_loss(student, teacher), student)()
    large = gradient_of(lambda: icsd_loss(upsample(student), upsample(teacher)), student)()
    return {
        "cosine": float(F.cosine_similarity(native.flatten(), large.flatten(), dim=0)),
        "norm of input over native": float(large.norm() / native.norm()),
    }


def float32_error() -> dict[str, float]:
    """Errors of value and gradient relative to float64, on logits in [-50, 50]."""
    student, teacher = ((torch.rand(NATIVE) * 100 - 50).requires_grad_() for _ in range(2))
    wide = student.detach().double().requires_grad_()
    value, expected = icsd_loss(student, teacher), icsd_by_autograd(wide, teacher.double())
    gradient = torch.autograd.grad(value, student)[0].double()
    reference = torch.autograd.grad(expected, wide)[0]
    return {
        "value": abs(float(value.detach().double() / expected.detach()) - 1),
        "gradient": float((gradient - reference).norm() / reference.norm()),
    }


def main() -> None:
    torch.manual_seed(0)
    figures: dict[str, object] = {
        "float32 error": float32_error(),
        "resolutions": {size: resolutions(size) for size in (9, 17, 33, 65)},
        "native terms, seconds": native_terms(),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    comparisons = [*pixel_comparisons(), *icsd_comparisons()]
    for comparison in comparisons:
        comparison.time()
    for comparison in comparisons:
        comparison.weigh()
    figures["comparisons"] = [comparison.figures() for comparison in comparisons]
    report("losses", figures, HEADER, [comparison.row() for comparison in comparisons])


if __name__ == "__main__":
    main()
