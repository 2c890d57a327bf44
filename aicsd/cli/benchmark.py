"""aicsd benchmark cost, latency, table and methods."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aicsd.benchmark.settings import CostConfig
from aicsd.cli.parser import Command
from aicsd.config import find_config, merge
from aicsd.errors import UserError
from aicsd.inputs import open_model, parse_size, pick_device

if TYPE_CHECKING:
    from aicsd.benchmark.cost import Cost


@dataclass(frozen=True, kw_only=True)
class CostOptions(CostConfig):
    """Time a few steps of a config of aicsd train or distill, and estimate the whole run."""

    steps: int = 10
    """steps to measure"""
    teacher_config: str | None = None
    """config of the teacher's training; its untrained network replaces a teacher that does not
    exist yet"""
    classes: int | None = None
    """number of classes of a dataset that does not exist yet"""
    images: int | None = None
    """number of training images of a dataset that does not exist yet"""
    size: str | None = None
    """WIDTHxHEIGHT of the images of a dataset that does not exist yet, such as 480x360"""
    json: str | None = None
    """JSON file for all figures"""


def cost(options: CostOptions) -> int:
    from aicsd.benchmark.cost import measure_cost

    config = CostConfig(**{f.name: getattr(options, f.name) for f in fields(CostConfig)})
    measured = measure_cost(
        config,
        steps=options.steps,
        teacher_config=options.teacher_config,
        classes=options.classes,
        images=options.images,
        size=None if options.size is None else parse_size(options.size),
    )
    _write_json(options.json, asdict(measured))
    print_cost(measured)
    return 0


def latency(
    models: list[str],
    *,
    size: str = "512x512",
    batch: int = 1,
    threads: int | None = None,
    repeats: int = 20,
    device: str = "auto",
    json: str | None = None,
) -> int:
    """Measure latency and throughput of models, with interleaved forward passes.

    Args:
        models: run folders, model files or exported models.
        size: WIDTHxHEIGHT in pixels.
        batch: images per forward pass.
        threads: CPU threads; default: all.
        repeats: passes of each model.
        device: auto, cpu, cuda or mps.
        json: JSON file for all figures.
    """
    import torch

    from aicsd.benchmark.latency import measure_latency
    from aicsd.benchmark.timing import machine, machine_line

    if threads is not None:
        if threads < 1:
            raise UserError(f"threads is {threads}; it must be 1 or more")
        torch.set_num_threads(threads)
    pixels = parse_size(size)
    networks = {path: open_model(path, device) for path in models}
    found = measure_latency(networks, size=pixels, batch=batch, repeats=repeats)
    figures = {name: asdict(figure) for name, figure in found.items()}
    settings = {"size": pixels, "batch": batch, "repeats": repeats}
    _write_json(json, {"machine": machine(), **settings, "models": figures})
    _print_table(
        ["model", "gives", "ms, min", "ms, median", "images/s", "MB", "parameters", "GMACs"],
        [
            [
                name,
                figure.gives,
                f"{1000 * figure.minimum:.2f}",
                f"{1000 * figure.median:.2f}",
                f"{figure.images_per_second:.1f}",
                f"{figure.megabytes:.1f}",
                _millions(figure.parameters),
                _gmacs(figure.gmacs),
            ]
            for name, figure in found.items()
        ],
    )
    used = torch.get_num_threads()
    print(
        f"{pixels[0]}x{pixels[1]}, batches of {batch}, {repeats} interleaved repeats, "
        f"{used} thread{'s' if used > 1 else ''}; MB: weights in memory, or the exported file"
    )
    print(machine_line(torch.device(pick_device(device))))
    return 0


def table(
    runs: list[str],
    *,
    by: tuple[str, ...] = ("method", "student", "images", "epochs"),
    baseline: str | None = None,
    per_class: bool = False,
    format: Literal["markdown", "csv", "json"] = "markdown",
    out: str | None = None,
) -> int:
    """Group runs that differ only in the seed, and compare them.

    Args:
        runs: run folders.
        by: columns that name a row: method, student, images, epochs or any key of config.yaml,
            such as terms.icsd.weight.
        baseline: method for the differences, paired by seed; default: none.
        per_class: add the IoU of every class.
        format: markdown, csv or json.
        out: file for the table.
    """
    from aicsd.benchmark.render import render
    from aicsd.benchmark.table import group_runs, read_runs
    from aicsd.files import write_text

    finished, unfinished = read_runs(map(Path, runs))
    for path in unfinished:
        print(f"{path}: left out, the run has not finished", file=sys.stderr)
    text = render(group_runs(finished, list(by), baseline), format, per_class)
    if out is None:
        print(text, end="")
    else:
        write_text(Path(out), text)
    return 0


def methods(
    *,
    config: str | None = None,
    runs: str = "runs/benchmark",
    out: str = "results/benchmark",
    jobs: int = 1,
    minutes: float = 0.0,
    table: bool = False,
    teacher: str | None = None,
    weights: str | None = None,
    root: str | None = None,
    common: dict[str, Any] | None = None,
) -> int:
    """Train methods x students x seeds, and write tables and a plot of gain against cost.

    The same command continues a benchmark that was stopped; finished runs are not repeated.

    Args:
        config: YAML file of the benchmark.
        runs: folder of the run folders.
        out: folder of results and tables.
        jobs: trainings in parallel.
        minutes: time limit; running trainings then save a checkpoint. 0: no limit.
        table: only rebuild the tables from the results.
        teacher: run folder or model file.
        weights: pretrained backbone of the students.
        root: folder of the dataset.
        common: further options of aicsd distill for all trainings, such as '{epochs: 12}'.
    """
    from aicsd.benchmark.methods import read_benchmark
    from aicsd.benchmark.methods_render import write_tables
    from aicsd.benchmark.methods_results import RESULTS_FILE, read_results
    from aicsd.benchmark.methods_run import Campaign
    from aicsd.benchmark.methods_table import Statistics

    place = Path(out)
    results = read_results(place / RESULTS_FILE)
    statistics = Statistics(results)
    if table:
        if not results.cells:
            raise UserError(f"there are no results in {place / RESULTS_FILE}")
        print(write_tables(statistics, place), end="")
        return 0
    if config is None:
        raise UserError("missing: config; see --help")
    if jobs < 1 or minutes < 0:
        raise UserError(f"jobs is {jobs} and minutes is {minutes}; they are at least 1 and 0")
    settings: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
    settings |= {} if root is None else {"data": {"root": root}}
    benchmark = read_benchmark(find_config(config), merge(settings, common or {}), weights)
    campaign = Campaign(
        benchmark, Path(runs), results, partial(write_tables, statistics, place, False)
    )
    outcome = campaign.run(jobs, 60 * minutes or float("inf"))
    print(write_tables(statistics, place), end="")
    for key, line in outcome.failed.items():
        print(f"{key} failed: {line}", file=sys.stderr)
    if outcome.stopped:
        print("aicsd: stopped; the same command continues", file=sys.stderr)
        return 130
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} trainings failed; their output is in {runs}")
    if outcome.waiting:
        print(f"{len(outcome.waiting)} cells are left; the same command continues", file=sys.stderr)
    return 0


def print_cost(cost: Cost) -> None:
    """The tables of one cost."""
    side, (width, height) = cost.crop, cost.image_size
    print(f"data: {cost.data}")
    for note in cost.notes:
        print(note)
    print(f"machine: {cost.machine_line}\n")
    networks = {"teacher": cost.teacher, "student": cost.student}
    _print_table(
        [
            "network",
            "backbone",
            "parameters",
            f"GMACs, crop {side}x{side}",
            f"GMACs, image {width}x{height}",
        ],
        [
            [
                name,
                network.backbone,
                _millions(network.parameters),
                _gmacs(network.gmacs_crop),
                _gmacs(network.gmacs_image),
            ]
            for name, network in networks.items()
            if network is not None
        ],
    )
    print()
    _print_table(
        ["part of a step", "ms", "share"],
        [
            [name, f"{1000 * seconds:.1f}", f"{100 * seconds / cost.step:.1f} %"]
            for name, seconds in [*cost.parts.items(), ("step", cost.step)]
        ],
    )
    print(
        f"{cost.measured_steps} steps of {cost.batch_size} images measured; "
        f"{cost.images_per_second:.1f} images/s; one process loads the batches of a step in "
        f"{1000 * cost.load:.1f} ms"
    )
    memory = cost.memory
    if memory.peak is not None and memory.before is not None:
        print(
            f"peak memory {_mib(memory.peak)} ({memory.measure}; {_mib(memory.before)} of it "
            "before the networks were built)"
        )
    print(f"the student keeps {_mib(memory.kept_calculated)} for the backward pass (calculated)")
    if cost.run is None:
        print("whole run: unknown without the number of images; give --images N")
    else:
        run = cost.run
        print(
            f"whole run: {_duration(run.total)} = {run.steps} steps {_duration(run.training)} + "
            f"{run.validations} validation{'s' * (run.validations > 1)} {_duration(run.validation)}"
            + (f" + one of the teacher {_duration(run.teacher)}" if cost.teacher else "")
        )
    print()
    _print_table(
        ["switch", "step, ms", "saves of the run" if cost.run else "saves of a step", "how known"],
        [
            [
                f"--{switch.setting}",
                "-" if switch.step is None else f"{1000 * switch.step:.1f}",
                f"{100 * switch.saved:.1f} %",
                switch.how,
            ]
            for switch in cost.switches
        ],
    )


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters else "-"


def _gmacs(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of words to the left, of numbers to the right."""
    columns = []
    for title, *cells in zip(header, *rows, strict=True):
        width = max(map(len, (title, *cells)))
        words = not any(cell[:2].strip("-")[:1].isdigit() for cell in cells)
        columns.append([c.ljust(width) if words else c.rjust(width) for c in (title, *cells)])
    for line in zip(*columns, strict=True):
        print("  ".join(line).rstrip())


def _write_json(path: str | None, content: dict[str, Any]) -> None:
    from aicsd.files import write_text

    if path is not None:
        write_text(Path(path), json_module.dumps(content, indent=1) + "\n")


ACTIONS = {
    "cost": Command(
        CostOptions,
        cost,
        (
            "data.name",
            "data.root",
            "teacher",
            "method",
            "steps",
            "teacher_config",
            "classes",
            "images",
            "size",
            "json",
            "accelerator",
            "precision",
        ),
        "aicsd benchmark cost --config cityscapes/aicsd --teacher_config cityscapes/teacher",
    ),
    "latency": Command(latency, latency, example="aicsd benchmark latency runs/teacher runs/aicsd"),
    "table": Command(table, table, example="aicsd benchmark table runs/*"),
    "methods": Command(
        methods,
        methods,
        example="aicsd benchmark methods --config camvid/methods --root CAMVID --teacher TEACHER",
    ),
}
