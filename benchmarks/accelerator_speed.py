"""Time and memory of losses and steps on an accelerator, and the speed of the input pipeline."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.data.batches import TrainBatches
from aicsd.data.camvid import open_camvid
from aicsd.data.classes_file import distinct_color
from aicsd.data.file_dataset import FileDataset, Pair
from aicsd.data.loaders import train_loader
from aicsd.data.memory import CachedDataset
from aicsd.data.protocol import Classes, SegDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.distiller import Distiller
from aicsd.evaluation.cost import synchronize
from aicsd.losses import cross_entropy_loss, icsd_loss, pixel_kd_loss
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.run_config import OptimizerConfig, Precision
from aicsd.teacher import Teacher
from aicsd.types import Batch
from benchmarks.accelerator_values import Check, Figures, require
from benchmarks.baselines import (
    icsd_by_autograd,
    icsd_by_loop,
    pixel_kd_by_autograd,
    released_step,
)
from benchmarks.common import LogitsOf, training_step

Shape = tuple[int, int, int, int]
"""Images, classes, height, width."""
Step = Callable[[], Callable[[], object]]
"""Builds its networks, and gives the function that does a step."""
SHAPES: tuple[Shape, ...] = ((6, 21, 513, 513), (8, 19, 512, 1024))
TINY_SHAPES: tuple[Shape, ...] = ((2, 3, 33, 49),)
LOADED_BATCHES = 24
GRADIENT_BOUND = 2e-3


def measured(run: Callable[[], object], device: torch.device, repeats: int = 5) -> Figures:
    """Milliseconds of the fastest call after one to warm up, and memory beyond that before it."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        gc.collect()
    run()
    synchronize(device)
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    figures: Figures = {"ms": 1000 * min(seconds)}
    if on_gpu:
        figures["mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return figures


# losses


def loss_speeds(device: torch.device, shapes: tuple[Shape, ...]) -> Iterator[Check]:
    """Forward and backward of losses, by the package and by plain PyTorch."""
    for shape in shapes:
        for name in ("cross entropy", "pixel KD", "ICSD", "ICSD, loop over pairs", "all three"):
            yield f"{name}, {'x'.join(map(str, shape))}", partial(loss_speed, name, shape, device)


def loss_speed(name: str, shape: Shape, device: torch.device) -> Figures:
    """Times of both forms; their gradients must agree."""
    random = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:
        return 3 * torch.randn(shape, generator=random, device=device)

    student, teacher = draw().requires_grad_(), draw()
    mask = torch.randint(
        shape[1], (shape[0], *shape[2:]), generator=random, device=device, dtype=torch.int64
    )
    mask[:, : shape[2] // 20] = 255
    plain: dict[str, Callable[[], Tensor]] = {
        "cross entropy": lambda: F.cross_entropy(student, mask, ignore_index=255),
        "pixel KD": lambda: pixel_kd_by_autograd(student, teacher),
        "ICSD": lambda: icsd_by_autograd(student, teacher),
        "ICSD, loop over pairs": lambda: icsd_by_loop(student, teacher),
    }
    package: dict[str, Callable[[], Tensor]] = {
        "cross entropy": lambda: cross_entropy_loss(student, mask),
        "pixel KD": lambda: pixel_kd_loss(student, teacher),
        "ICSD": lambda: icsd_loss(student, teacher),
    }
    three = ("cross entropy", "pixel KD", "ICSD")

    def form(losses: dict[str, Callable[[], Tensor]]) -> Callable[[], Tensor]:
        names = three if name == "all three" else (name,)

        def gradient() -> Tensor:
            total = torch.stack([losses[each]() for each in names]).sum()
            return torch.autograd.grad(total, student)[0]

        return gradient

    package["ICSD, loop over pairs"] = package["ICSD"]
    ours, others = form(package), form(plain)
    wanted, found = others(), ours()
    error = float((found - wanted).norm() / wanted.norm())
    del wanted, found
    repeats = 1 if name.endswith("pairs") else 5
    by_plain, by_package = measured(others, device, repeats), measured(ours, device)
    figures: Figures = {
        "plain_ms": by_plain["ms"],
        "package_ms": by_package["ms"],
        "times_faster": by_plain["ms"] / by_package["ms"],
    }
    if "mib" in by_plain:
        maps = student.numel() * student.element_size() / 2**20
        figures |= {"plain_maps": by_plain["mib"] / maps, "package_maps": by_package["mib"] / maps}
    return require(error < GRADIENT_BOUND, {**figures, "gradient_error": error})


# steps


def step_speeds(
    device: torch.device, shapes: tuple[Shape, ...], backbones: tuple[str, str]
) -> Iterator[Check]:
    """A training step of AICSD, and what it is compared with."""
    on_gpu = device.type == "cuda"
    precisions: tuple[Precision, ...] = ("32-true", "bf16-mixed") if on_gpu else ("32-true",)
    for shape in shapes:
        size = "x".join(map(str, (shape[0], *shape[2:])))
        steps: dict[str, Step] = {}
        for precision in precisions:
            for method in ("none", "aicsd"):
                name = "student alone" if method == "none" else "AICSD"
                make = partial(package_step, method, precision, shape, device, backbones)
                steps[f"{name}, {precision}"] = make
        make = partial(package_step, "aicsd", "32-true", shape, device, backbones)
        steps["AICSD, deterministic"] = partial(deterministic_step, make)
        steps["AICSD by autograd"] = partial(autograd_step, shape, device, backbones)
        steps["released scheme"] = partial(released, shape, device, backbones)
        for name, step in steps.items():
            yield f"{name}, {size}", partial(step_speed, step, shape[0], device)
    for shape in shapes if on_gpu else ():  # last: compiling takes longer than all of the others
        size = "x".join(map(str, (shape[0], *shape[2:])))
        step = partial(package_step, "aicsd", "32-true", shape, device, backbones, compiled=True)
        yield f"AICSD, compiled teacher, {size}", partial(step_speed, step, shape[0], device)


def step_speed(make: Step, images: int, device: torch.device) -> Figures:
    """Time and memory of a step; its networks are freed afterwards."""
    try:
        figures = measured(make(), device, repeats=4)
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return {**figures, "images_per_second": 1000 * images / figures["ms"]}


def build(backbone: str, classes: int) -> Segmenter:
    """A network with random weights."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(classes))
    palette = tuple(distinct_color(number) for number in range(classes))
    return build_model(ModelConfig(backbone), Classes(names, palette))


def random_batch(shape: Shape, device: torch.device) -> Batch:
    """Images as a loader hands them over, already on the device."""
    count, classes, height, width = shape
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, height, width, 3), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, classes, (count, height, width), generator=random)
    valid = torch.ones(count, height, width, dtype=torch.bool)
    return Batch(image.permute(0, 3, 1, 2), mask, valid).to(device)


def package_step(
    method: str,
    precision: Precision,
    shape: Shape,
    device: torch.device,
    backbones: tuple[str, str],
    compiled: bool = False,
) -> Callable[[], object]:
    """The step that a training does."""
    large, small = (build(backbone, shape[1]) for backbone in backbones)
    teacher = Teacher(large, large.classes)
    if method != "none":
        teacher.to(device)
        teacher.speed_up("compiled" if compiled else "eager", shape[2])
    distiller = Distiller(small, load_recipe(method), teacher)
    batches = repeat(random_batch(shape, device))
    return training_step(distiller, OptimizerConfig(lr=1e-4), batches, device.type, precision)


def deterministic_step(make: Step) -> Callable[[], object]:
    """A step that uses deterministic kernels alone."""
    step = make()

    def run() -> None:
        torch.use_deterministic_algorithms(True)
        try:
            step()
        finally:
            torch.use_deterministic_algorithms(False)

    return run


def autograd_step(
    shape: Shape, device: torch.device, backbones: tuple[str, str]
) -> Callable[[], object]:
    """The same terms on the same maps, with PyTorch's own gradients."""
    teacher, student = (build(backbone, shape[1]).to(device) for backbone in backbones)
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    data = random_batch(shape, device)

    def step() -> None:
        own = student(data.image).logits
        with torch.no_grad():
            target = teacher(data.image).logits
        large = F.interpolate(own, size=data.mask.shape[-2:], mode="bilinear", align_corners=True)
        loss = F.cross_entropy(large, data.mask, ignore_index=255)
        loss = loss + pixel_kd_by_autograd(own, target) + 20 * icsd_by_autograd(own, target)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def released(
    shape: Shape, device: torch.device, backbones: tuple[str, str]
) -> Callable[[], object]:
    """The step of the released code, written anew."""
    teacher, student = (
        LogitsOf(build(backbone, shape[1]).net).to(device) for backbone in backbones
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    data = random_batch(shape, device)
    image = (data.image.float() / 255 - 0.45).div(0.225).contiguous()
    return lambda: released_step(student, teacher, image, data.mask, optimizer)


# input


def pipeline_speeds(root: Path | None, crop: int, batches: int) -> Iterator[Check]:
    """Images that the input pipeline gives a second, by one core and by all."""
    for name, workers, cached in (
        ("one core", 0, False),
        ("one core, decoded images in memory", 0, True),
        ("all cores", len(os.sched_getaffinity(0)), False),
        ("all cores, decoded images in memory", len(os.sched_getaffinity(0)), True),
    ):
        yield f"input pipeline, {name}", partial(pipeline, root, crop, batches, workers, cached)


def pipeline(root: Path | None, crop: int, batches: int, workers: int, cached: bool) -> Figures:
    """Images/s of training batches of 8, the first ones not counted."""
    threads = cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as place:
        dataset: SegDataset
        dataset = photos(Path(place), 24) if root is None else open_camvid(root, "train")
        if cached:
            dataset = CachedDataset(dataset, 2000, shared=workers > 0)
        warm_up = len(dataset) // 8 if cached else max(2, workers)
        config = DataConfig(
            batch_size=8, workers=workers, augment=AugmentConfig(crop=crop, short_side=crop)
        )
        plan = TrainBatches(len(dataset), 8, 0, 0, warm_up + batches)
        cv2.setNumThreads(1)
        try:
            loader = train_loader(dataset, config, plan)
            for _ in islice(loader, warm_up):
                pass
            begin = time.perf_counter()
            count = sum(len(batch.image) for batch in loader)
            seconds = time.perf_counter() - begin
        finally:
            cv2.setNumThreads(threads)
    return {"images_per_second": count / seconds, "workers": workers, "crop": crop}


def photos(folder: Path, count: int) -> FileDataset:
    """Smooth random JPEGs of 500x375 with masks."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(coarse[..., 0] % 5, (500, 375), interpolation=cv2.INTER_NEAREST)
        files = [folder / f"{number}.jpg", folder / f"{number}.png"]
        for path, pixels in zip(files, (image, mask), strict=True):
            path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        pairs.append(Pair(*files))
    names = tuple(f"class {number}" for number in range(5))
    return FileDataset(pairs, Classes(names, tuple(map(distinct_color, range(5)))))
