"""aicsd benchmark cost, latency, table and methods."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicsd.cli.common import pick_device
from aicsd.config import ConfigParser, config_from_namespace, config_parser
from aicsd.errors import UserError

if TYPE_CHECKING:
    from aicsd.benchmark.cost import Cost

HELP = "what a training costs, how fast models are, methods compared: cost, latency, table, methods"


def build_parser() -> ConfigParser:
    return ConfigParser(description=HELP)


def add_actions(parser: ConfigParser) -> None:
    actions = parser.add_subcommands(title="actions", metavar="ACTION")
    actions.add_subcommand("cost", _cost_parser(), help="what a config costs on this machine")
    actions.add_subcommand("latency", _latency_parser(), help="forward passes, side by side")
    actions.add_subcommand("table", _table_parser(), help="methods x seeds, from finished runs")
    actions.add_subcommand("methods", _methods_parser(), help="train methods x seeds, and compare")


def _cost_parser() -> ConfigParser:
    from aicsd.benchmark.inputs import CostConfig

    parser = config_parser(
        CostConfig,
        description="Train a few steps of a config of aicsd train or distill with a clock; "
        "nothing is written. Flags override the config.",
    )
    parser.add_argument("--steps", type=int, default=10, help="steps to measure")
    parser.add_argument(
        "--teacher_config", type=str | None,
        help="config of the teacher's training: an untrained network of it stands in for a "
        "teacher that is not there",
    )  # fmt: skip
    parser.add_argument("--classes", type=int | None, help="of a dataset that is not there")
    parser.add_argument("--images", type=int | None, help="to train on, likewise")
    parser.add_argument(
        "--size", type=str | None, help="WIDTHxHEIGHT of its images, likewise, such as 480x360"
    )
    parser.add_argument("--json", type=str | None, help="file that gets all figures as JSON")
    return parser


def _latency_parser() -> ConfigParser:
    parser = ConfigParser(description="Time the forward pass of models, which take turns.")
    parser.add_argument(
        "models", type=str, nargs="+", help="run folders, model files or exported models"
    )
    parser.add_argument("--size", type=str, default="512x512", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images a pass")
    parser.add_argument("--threads", type=int | None, help="of the CPU; all without it")
    parser.add_argument("--repeats", type=int, default=20, help="passes of each model")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--json", type=str | None, help="file that gets all figures as JSON")
    return parser


def _table_parser() -> ConfigParser:
    from aicsd.benchmark.render import Format
    from aicsd.benchmark.table import NAMES

    parser = ConfigParser(description="Group runs that differ only in the seed, and compare them.")
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--by", type=str, default=",".join(NAMES),
        help="what names a row, separated by commas: method, student, images, epochs or any key "
        "of config.yaml, such as terms.icsd.weight",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", type=str | None,
        help="method that differences are taken to, seed by seed; none, where there is one",
    )  # fmt: skip
    parser.add_argument("--per_class", type=bool, default=False, help="the IoU of every class too")
    parser.add_argument("--format", type=Format, default="markdown", help="markdown, csv or json")
    parser.add_argument("-o", "--out", type=str | None, help="file that gets the table")
    return parser


def _methods_parser() -> ConfigParser:
    parser = ConfigParser(
        description="Train methods x students x seeds, and write tables and a plot of gain against "
        "cost. Called again, it goes on; finished runs are taken as they are."
    )
    parser.add_argument("--config", type=str | None, help="YAML file of the benchmark")
    parser.add_argument(
        "--runs", type=str, default="runs/benchmark", help="folder of the run folders"
    )
    parser.add_argument(
        "--out", type=str, default="results/benchmark", help="folder of results and tables"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument(
        "--minutes", type=float, default=0.0,
        help="time to train; what runs then saves where it stands. 0: until all is done",
    )  # fmt: skip
    parser.add_argument(
        "--table", type=bool, default=False, help="train nothing: make the tables from the results"
    )
    parser.add_argument("--teacher", type=str | None, help="run folder or model file")
    parser.add_argument("--weights", type=str | None, help="pretrained backbone of the students")
    parser.add_argument("--root", type=str | None, help="folder of the dataset")
    parser.add_argument(
        "--common", type=dict[str, Any], default={},
        help="further options of aicsd distill for all trainings, such as '{epochs: 12}'",
    )  # fmt: skip
    return parser


def run(options: Any) -> int:
    actions = {"cost": _cost, "latency": _latency, "table": _table, "methods": _methods}
    return actions[options.subcommand](options[options.subcommand])


def _cost(options: Any) -> int:
    from aicsd.benchmark.cost import measure_cost
    from aicsd.benchmark.inputs import CostConfig

    cost = measure_cost(
        config_from_namespace(CostConfig, options),
        steps=options.steps, teacher_config=options.teacher_config, classes=options.classes,
        images=options.images, size=None if options.size is None else parse_size(options.size),
    )  # fmt: skip
    _write_json(options.json, asdict(cost))
    print_cost(cost)
    return 0


def _latency(options: Any) -> int:
    import torch

    from aicsd.benchmark.latency import measure_latency
    from aicsd.benchmark.timing import machine, machine_line
    from aicsd.models import load_model

    if options.threads is not None:
        if options.threads < 1:
            raise UserError(f"threads is {options.threads}; it must be 1 or more")
        torch.set_num_threads(options.threads)
    size = parse_size(options.size)
    device = torch.device(pick_device(options.device))
    models = {path: load_model(path).to(device) for path in options.models}
    found = measure_latency(models, size=size, batch=options.batch, repeats=options.repeats)
    figures = {name: asdict(latency) for name, latency in found.items()}
    settings = {"size": size, "batch": options.batch, "repeats": options.repeats}
    _write_json(options.json, {"machine": machine(), **settings, "models": figures})
    _print_table(
        ["model", "gives", "ms, min", "ms, median", "images/s", "MB", "parameters", "GMACs"],
        [[name, latency.gives, f"{1000 * latency.minimum:.2f}", f"{1000 * latency.median:.2f}",
          f"{latency.images_per_second:.1f}", f"{latency.megabytes:.1f}",
          _millions(latency.parameters), _gmacs(latency.gmacs)]
         for name, latency in found.items()],
    )  # fmt: skip
    threads = torch.get_num_threads()
    print(
        f"{size[0]}x{size[1]}, batches of {options.batch}, {options.repeats} repeats in turns, "
        f"{threads} thread{'s' if threads > 1 else ''}; MB: weights in memory, or the exported file"
    )
    print(machine_line(device))
    return 0


def _table(options: Any) -> int:
    from aicsd.benchmark.render import render
    from aicsd.benchmark.table import group_runs, read_runs
    from aicsd.files import write_text

    finished, unfinished = read_runs(map(Path, options.runs))
    for path in unfinished:
        print(f"{path}: left out, the run has not finished", file=sys.stderr)
    names = [name.strip() for name in options.by.split(",")]
    text = render(group_runs(finished, names, options.baseline), options.format, options.per_class)
    if options.out is None:
        print(text, end="")
    else:
        write_text(Path(options.out), text)
    return 0


def _methods(options: Any) -> int:
    from aicsd.benchmark.methods import merge, read_benchmark
    from aicsd.benchmark.methods_render import write_tables
    from aicsd.benchmark.methods_results import RESULTS_FILE, read_results
    from aicsd.benchmark.methods_run import Campaign
    from aicsd.benchmark.methods_table import Statistics

    out = Path(options.out)
    results = read_results(out / RESULTS_FILE)
    statistics = Statistics(results)
    if options.table:
        if not results.cells:
            raise UserError(f"there are no results in {out / RESULTS_FILE}")
        print(write_tables(statistics, out), end="")
        return 0
    if options.config is None:
        raise UserError("missing: config; --help tells what it is")
    if options.jobs < 1 or options.minutes < 0:
        raise UserError(
            f"jobs is {options.jobs} and minutes is {options.minutes}; they are at least 1 and 0"
        )
    common: dict[str, Any] = {} if options.teacher is None else {"teacher": options.teacher}
    common |= {} if options.root is None else {"data": {"root": options.root}}
    benchmark = read_benchmark(Path(options.config), merge(common, options.common), options.weights)
    campaign = Campaign(
        benchmark, Path(options.runs), results, lambda: write_tables(statistics, out)
    )
    outcome = campaign.run(options.jobs, 60 * options.minutes or float("inf"))
    print(write_tables(statistics, out), end="")
    for key, line in outcome.failed.items():
        print(f"{key} failed: {line}", file=sys.stderr)
    if outcome.stopped:
        print("aicsd: stopped; the same command goes on", file=sys.stderr)
        return 130
    if outcome.failed:
        raise UserError(
            f"{len(outcome.failed)} trainings failed; their output is in {options.runs}"
        )
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """``480x360`` -> (480, 360): width and height."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 32:
        raise UserError(f"size is {text!r}; it is WIDTHxHEIGHT, each 32 or more, such as 480x360")
    return size


def print_cost(cost: Cost) -> None:
    """The tables of one cost."""
    side, (width, height) = cost.crop, cost.image_size
    print(f"data: {cost.data}")
    for note in cost.notes:
        print(note)
    print(f"machine: {cost.machine_line}\n")
    networks = {"teacher": cost.teacher, "student": cost.student}
    _print_table(
        ["network", "backbone", "parameters", f"GMACs, crop {side}x{side}",
         f"GMACs, image {width}x{height}"],
        [[name, network.backbone, _millions(network.parameters),
          _gmacs(network.gmacs_crop), _gmacs(network.gmacs_image)]
         for name, network in networks.items() if network is not None],
    )  # fmt: skip
    print()
    _print_table(
        ["part of a step", "ms", "share"],
        [[name, f"{1000 * seconds:.1f}", f"{100 * seconds / cost.step:.1f} %"]
         for name, seconds in [*cost.parts.items(), ("step", cost.step)]],
    )  # fmt: skip
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
        print("whole run: not known without the number of images; give --images N")
    else:
        run = cost.run
        print(
            f"whole run: {_duration(run.total)} = {run.steps} steps {_duration(run.training)} + "
            f"{run.validations} validations {_duration(run.validation)}"
            + (f" + one of the teacher {_duration(run.teacher)}" if cost.teacher else "")
        )
    print()
    _print_table(
        ["switch", "step, ms", "saves of the run" if cost.run else "saves of a step", "how known"],
        [[f"--{switch.setting}", "-" if switch.step is None else f"{1000 * switch.step:.1f}",
          f"{100 * switch.saved:.1f} %", switch.how] for switch in cost.switches],
    )  # fmt: skip


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
        write_text(Path(path), json.dumps(content, indent=1) + "\n")
