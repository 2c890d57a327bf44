"""Cost of a training on this machine: a few timed steps, extrapolated to the whole run."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, median

import torch
from lightning_fabric import Fabric

from aicsd.benchmark.counts import kept_bytes_and_flops
from aicsd.benchmark.inputs import CostData, TeacherSource, build_untrained, find_teacher, open_data
from aicsd.benchmark.settings import CostConfig
from aicsd.benchmark.steps import PARTS, ClockedSteps, peak_memory, repeated
from aicsd.benchmark.switches import RunTime, Switch, estimated_switches, of_step, step_variants
from aicsd.benchmark.timing import machine, machine_line
from aicsd.data.loaders import timed, train_loader
from aicsd.data.wrappers import Subset
from aicsd.distiller import Distiller
from aicsd.engine.device import open_fabric
from aicsd.engine.run import try_out
from aicsd.engine.run_batches import plan_run
from aicsd.errors import UserError
from aicsd.evaluation import evaluate
from aicsd.evaluation.cost import gmacs, synchronize, take_turns
from aicsd.messages import say
from aicsd.models import Segmenter
from aicsd.teacher import Teacher
from aicsd.terminal import progress_bar
from aicsd.types import Batch

WARM_UP = 2
"""Steps before the clock counts: the first allocate memory and choose algorithms."""
KEPT_BATCHES = 2
"""Loaded once, for the switches to be compared on."""
VALIDATED = 3
"""Images on which the validation time of one image is measured."""


@dataclass(frozen=True)
class NetworkCost:
    """A network by calculation; 10^9 multiply-adds of one image."""

    backbone: str
    parameters: int
    gmacs_crop: float | None
    gmacs_image: float | None


@dataclass(frozen=True)
class Memory:
    """Memory in bytes."""

    peak: int | None
    before: int | None
    """The same measure before the networks were built."""
    measure: str
    kept_calculated: int
    """Activations of the student for the backward pass, in float32, without those of the losses."""


@dataclass(frozen=True)
class Cost:
    """The report of ``aicsd benchmark cost``."""

    machine: dict[str, str]
    machine_line: str
    data: str
    notes: list[str]
    batch_size: int
    crop: int
    image_size: tuple[int, int]
    """Width and height."""
    teacher: NetworkCost | None
    student: NetworkCost
    measured_steps: int
    parts: dict[str, float]
    """Seconds of a step; they add up to ``step``."""
    step: float
    images_per_second: float
    load: float
    """Seconds that one process takes to load the batches of a step."""
    memory: Memory
    run: RunTime | None
    switches: list[Switch]


def measure_cost(
    config: CostConfig,
    *,
    steps: int = 10,
    teacher_config: str | None = None,
    classes: int | None = None,
    images: int | None = None,
    size: tuple[int, int] | None = None,
) -> Cost:
    """Train a few steps of ``config`` with a clock; nothing is written.

    Args:
        config: config of the run, measured on one device; with several, a step is assumed to last
            as long with as many times the images.
        steps: steps to measure, after a few warm-up steps.
        teacher_config: config with the network of a missing teacher.
        classes: classes of a missing dataset: see :func:`aicsd.benchmark.inputs.open_data`.
        images: images of such a dataset.
        size: width and height of its images.

    Raises:
        UserError: what ``aicsd distill`` refuses, or a missing teacher of unknown kind.
    """
    for name, value in (("steps", steps), ("classes", classes), ("images", images)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    fabric = open_fabric(replace(config, devices=1, num_nodes=1))
    fabric.launch()
    before = peak_memory(fabric.device)
    source = find_teacher(config, teacher_config)
    data = open_data(config, source.trained if source else None, classes, images, size)
    say("building the networks and counting their operations")
    student = build_untrained(config.network, data.train.classes, config.seed)
    teacher = None
    if source is not None:
        teacher = Teacher(
            source.network(data, config.seed), data.train.classes, config.teacher_classes
        )
    alike = [1] * len(data.train.classes.names)  # weights of classes cost the same
    try_out(
        Distiller(student, config.recipe, teacher, alike), config.data.augment.crop, fabric.device
    )
    bench = _Bench(config, data, student, teacher, fabric)
    say(f"loading {KEPT_BATCHES + 1} batches")
    batches, load = bench.load()
    parts = bench.steps(steps)
    memory = bench.memory(before)
    say("timing the validation of a few images")
    run = bench.run_time(sum(parts.values()))
    switches = estimated_switches(config, parts, load, run)
    for setting, ratio in bench.compare(batches, steps).items():
        with_it = parts["data"] + ratio * (sum(parts.values()) - parts["data"])
        switches.append(of_step(setting, with_it, parts, run, "measured, interleaved"))
    return Cost(
        machine=machine(),
        machine_line=machine_line(fabric.device),
        data=bench.describe(),
        notes=_notes(config, source, data),
        batch_size=config.data.batch_size,
        crop=config.data.augment.crop,
        image_size=data.size,
        teacher=bench.teacher_cost,
        student=bench.network_cost(student),
        measured_steps=steps,
        parts=parts,
        step=sum(parts.values()),
        images_per_second=bench.images_per_step / sum(parts.values()),
        load=load,
        memory=memory,
        run=run,
        switches=switches,
    )


def _notes(config: CostConfig, source: TeacherSource | None, data: CostData) -> list[str]:
    """Differences from the training itself."""
    notes = [] if source is None else [source.note]
    if data.missing is not None:
        notes.append(f"{data.missing}: RANDOM IMAGES stand in for the data")
    if config.teacher_cache is not None and source is not None:
        notes.append("the teacher is measured live; from teacher_cache its part is next to nothing")
    return notes


class _Bench:
    """A config with its data and networks, and what can be measured on them."""

    def __init__(
        self,
        config: CostConfig,
        data: CostData,
        student: Segmenter,
        teacher: Teacher | None,
        fabric: Fabric,
    ) -> None:
        self.config, self.data, self.fabric = config, data, fabric
        self.student = student.to(fabric.device)
        self.teacher = None if teacher is None else teacher.to(fabric.device)
        self.teacher_cost = None if teacher is None else self.network_cost(teacher.model)
        self._loaded = None if teacher is None else teacher.model
        if teacher is not None:
            teacher.speed_up(config.teacher_runtime, config.data.augment.crop)
        self.world = config.devices * config.num_nodes
        self.accumulate = config.optimizer.accumulate
        self.images_per_step = config.data.batch_size * self.accumulate * self.world
        self.plan = plan_run(config, data.train, world=self.world)
        self.total = self.plan.stop // self.accumulate

    def describe(self) -> str:
        data = self.config.data
        count = "" if self.data.counts is None else f", {self.data.counts[0]} images"
        kind = "real images" if self.data.missing is None else "RANDOM IMAGES"
        classes = len(self.data.train.classes.names)
        return f"{data.named().name} {data.train_split}{count}, {classes} classes ({kind})"

    def network_cost(self, model: Segmenter) -> NetworkCost:
        crop = self.config.data.augment.crop
        backbone = model.name
        crop_cost, image_cost = gmacs(model, crop, crop), gmacs(model, *self.data.size)
        return NetworkCost(backbone, model.num_parameters(), crop_cost, image_cost)

    def load(self) -> tuple[list[Batch], float]:
        """A few batches, and the seconds that this process takes to load those of a step."""
        loader = train_loader(
            self.data.train,
            replace(self.config.data, workers=0),
            replace(self.plan, stop=KEPT_BATCHES + 1),
            protocol=self.config.protocol,
            color=self.student.input.color,
        )
        batches, seconds = zip(*timed(loader), strict=True)
        # the first one opens files and fills caches
        return list(batches[1:]), mean(seconds[1:]) * self.accumulate

    def steps(self, count: int) -> dict[str, float]:
        """Seconds of every part of a step, over ``count`` steps of the run as it is configured.

        The median, but of the waiting for data the mean: one batch in several may be late.
        """
        batches = train_loader(
            self.data.train,
            self.config.data,
            replace(self.plan, stop=(WARM_UP + count) * self.accumulate),
            pin_memory=self.fabric.device.type == "cuda",
            protocol=self.config.protocol,
            color=self.student.input.color,
        )
        clocked = self._clocked(self.config, batches, self.fabric)
        found = []
        with progress_bar() as bar:
            task = bar.add_task("timing training steps", total=WARM_UP + count, note="")
            for _ in range(WARM_UP + count):
                found.append(clocked.step())
                bar.advance(task)
        del found[:WARM_UP]
        next(batches, None)  # at its end the loader ends its workers
        return {
            part: (mean if part == "data" else median)(seconds[part] for seconds in found)
            for part in PARTS
        }

    def memory(self, before: int | None) -> Memory:
        kept, _, _ = kept_bytes_and_flops(
            self.config.network,
            self.data.train.classes,
            self.config.data.batch_size,
            self.config.data.augment.crop,
            trains=True,
        )
        on_gpu = self.fabric.device.type == "cuda"
        measure = (
            "largest allocation on the GPU"
            if on_gpu
            else "resident memory of this process, high-water mark"
        )
        return Memory(peak_memory(self.fabric.device), before, measure, kept)

    def run_time(self, step: float) -> RunTime | None:
        """The whole run, if the number of images is known."""
        if self.data.counts is None:
            return None
        every, epochs = self.config.val_every, self.config.epochs
        validations = epochs // every + bool(epochs % every) if every else 1
        images = self.data.counts[1] / self.world
        teacher = 0.0 if self.teacher is None else images * self._validate(self.teacher.model)
        student = images * self._validate(self.student) * validations
        return RunTime(self.total, self.total * step, validations, student, teacher)

    def _validate(self, model: Segmenter) -> float:
        """Seconds to validate one image."""
        seconds = 0.0
        for count in (1, min(VALIDATED, len(self.data.val))):  # the first to warm up
            begin = time.perf_counter()
            val = Subset(self.data.val, count)
            evaluate(model, val, short_side=self.config.val_short_side)
            synchronize(self.fabric.device)
            seconds = (time.perf_counter() - begin) / count
        return seconds

    def compare(self, batches: list[Batch], count: int) -> dict[str, float]:
        """Time of a step with each of the settings that change its computation, over the time
        without: interleaved, on the same batches in memory.
        """
        variants = step_variants(self.config, self.fabric.device.type)
        if not variants:
            return {}
        clocks = {"": self._clocked(self.config, repeated(batches), self.fabric)}
        for setting, config in variants.items():
            fabric = open_fabric(replace(config, devices=1, num_nodes=1))
            fabric.launch()
            clocks[setting] = self._clocked(config, repeated(batches), fabric)
        steps = {name: clocked.step for name, clocked in clocks.items()}
        with progress_bar() as bar:
            task = bar.add_task("comparing settings", total=(count + 1) * len(steps), note="")
            seconds = take_turns(steps, count, advance=lambda: bar.advance(task))
        return {name: median(seconds[name]) / median(seconds[""]) for name in variants}

    def _clocked(
        self, config: CostConfig, batches: Iterator[Batch], fabric: Fabric
    ) -> ClockedSteps:
        student = copy.deepcopy(self.student).to(memory_format=torch.channels_last)
        teacher = self.teacher
        if self._loaded is not None and config.teacher_runtime != self.config.teacher_runtime:
            teacher = Teacher(self._loaded, self._loaded.classes)
            teacher.speed_up(config.teacher_runtime, config.data.augment.crop)
        alike = [1] * len(self.data.train.classes.names)  # weights of classes cost the same
        distiller = Distiller(student, config.recipe, teacher, alike)
        return ClockedSteps(config, distiller, batches, self.total, fabric)
