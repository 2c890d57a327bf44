"""aicsd benchmark cost, latency, table and methods."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aicsd.benchmark.settings import CostConfig
from aicsd.cli.parser import Command
from aicsd.config import find_config, merge
from aicsd.errors import UserError
from aicsd.inputs import open_model, parse_size, pick_device
from aicsd.messages import say


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
    from aicsd.benchmark.text import cost_text

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
    print(cost_text(measured), end="")
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
    from aicsd.benchmark.text import latency_text
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
    print(latency_text(found), end="")
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
    from aicsd.benchmark.methods_file import read_benchmark
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
        say("stopped; the same command continues")
        return 130
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} trainings failed; their output is in {runs}")
    if outcome.waiting:
        print(f"{len(outcome.waiting)} cells are left; the same command continues", file=sys.stderr)
    return 0


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
