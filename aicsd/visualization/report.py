"""The report of one or several runs: one HTML page that needs nothing else."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aicsd._version import __version__
from aicsd.benchmark.statistics import percent
from aicsd.data.protocol import Classes, SegDataset
from aicsd.evaluation import evaluate
from aicsd.evaluation.cost import PassCost, measure_costs
from aicsd.files import write_text
from aicsd.models import Segmenter
from aicsd.models.inference import NotEnoughMemoryError, memory_for
from aicsd.models.views import WHOLE_PIXELS
from aicsd.runs import FinishedRun, RunFolder
from aicsd.visualization.charts import Chart, Line, draw_chart, heat_map
from aicsd.visualization.curves import LOSS, MIOU, WEIGHT, series, smooth, term_names
from aicsd.visualization.entries import ReportEntry
from aicsd.visualization.figures import DIVERGING, MINUS, SEQUENTIAL
from aicsd.visualization.ics_history import shared_teacher
from aicsd.visualization.pages import draw_pages, hex_color
from aicsd.visualization.runs import Network, data_title
from aicsd.visualization.verdict import interval_text, verdict
from aicsd.visualization.views import (
    FloatArray,
    Views,
    ics_distance,
    predict_views,
    shown_indices,
    unit_rows,
)

TEMPLATES = Path(__file__).parent / "templates"
LIBRARIES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy")
CONFUSIONS_LISTED = 6
NO_VALUE = "\N{EN DASH}"


def write_report(
    path: Path,
    entries: Sequence[ReportEntry],
    dataset: SegDataset,
    *,
    images: int = 6,
    notes: Sequence[str] = (),
    measured_on: str | None = None,
    shown_from: str | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Write the page that compares ``entries``.

    Args:
        path: HTML file; written beside its place and renamed.
        entries: teacher first; one without a model has only its figures shown.
        dataset: where the pictures come from.
        images: number of images, spread evenly over ``dataset``; at most all of them.
        notes: remarks on missing data.
        measured_on: dataset and split of the figures; without it those of the first run.
        shown_from: dataset and split of ``dataset``, where they are others.
        remarks: sentences to follow the verdict.

    Raises:
        UserError: an image that cannot be read, or a path that cannot be written.
    """
    indices = shown_indices(dataset, images) if len(dataset) else []
    samples = [dataset.read(index) for index in indices]
    missing = list(notes) + ([] if samples else ["The split has no images to show."])
    models = {s.title: s.model for s in entries if s.model is not None and samples}
    views = {title: predict_views(model, samples) for title, model in models.items()}
    costs = _costs(models, *samples[0].mask.shape) if models else {}
    names = [dataset.names[index] for index in indices]
    runs = [net for entry in entries for net in entry.networks]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        title=" · ".join(entry.title for entry in entries if not entry.is_teacher),
        about=_about(entries, len(samples), len(dataset), measured_on, shown_from),
        verdict=[*verdict(entries), *remarks],
        notes=missing,
        table=_table(entries, costs),
        size=next(iter(costs.values()), None),
        classes=_classes(entries, dataset.classes),
        confusions=_confusions(entries, dataset.classes.names),
        names=dataset.classes.names,
        panels=draw_pages(samples, names, views, dataset.classes),
        seeds=any(len(entry.networks) > 1 for entry in entries),
        ics=_ics(entries, views),
        charts=_charts(entries),
        repeat=[_repeat(net.title, net.run) for net in runs if net.run is not None],
        versions=_versions(),
    )
    write_text(path, html)


def _costs(models: dict[str, Segmenter], height: int, width: int) -> dict[str, PassCost]:
    """Cost of a pass; nothing for images that do not fit into memory."""
    if height * width > WHOLE_PIXELS:
        return {}
    try:
        with memory_for(1, (height, width)):
            return measure_costs(models, height, width)
    except NotEnoughMemoryError:
        return {}


def _about(
    entries: Sequence[ReportEntry],
    shown: int,
    images: int,
    measured_on: str | None,
    source: str | None,
) -> str:
    """Dataset, split and number of images of the figures, and of the pictures."""
    nets = [net for entry in entries for net in entry.networks]
    run = next((net.run for net in nets if net.run is not None and not net.is_teacher), None)
    data = run.config.get("data", {}) if run is not None else {}
    if measured_on is None and data:
        measured_on = data_title(data["name"], data.get("root"), data["val_split"])
    count = next((net.metrics["images"] for net in nets if "images" in net.metrics), None)
    text = f"Measured on {measured_on}" if measured_on else "Measured"
    text += f", {count} images." if count is not None else "."
    if labels := next((net.metrics["labels"] for net in nets if net.metrics.get("labels")), None):
        text += f" No image has labels: mIoU is the agreement with the {labels}."
    place = f" of {source}" if source and source != measured_on else ""
    return f"{text} Pictures: {shown} of the {images} images{place}."


def measure(network: Network, dataset: SegDataset) -> Network:
    """``network`` with metrics on the whole of ``dataset``."""
    if network.model is None:
        return network
    return replace(network, metrics=evaluate(network.model, dataset).to_dict())


def _table(entries: Sequence[ReportEntry], costs: dict[str, PassCost]) -> list[dict[str, str]]:
    """A row for each entry; what no row has is left out."""
    seeds = any(len(entry.networks) > 1 for entry in entries)
    gains = [entry.gain for entry in entries if entry.gain is not None]
    rows = []
    for entry in entries:
        cost, gain = costs.get(entry.title), entry.gain
        parameters = cost.parameters if cost else entry.mean("parameters")
        row = {"network": entry.title}
        if seeds:
            row["seeds"] = (
                ", ".join(str(net.seed) for net in entry.networks if net.seed is not None)
                or NO_VALUE
            )
        row["mIoU %"] = _percent(entry.values("miou"))
        if gains:
            row[f"points against {gains[0].to}"] = (
                NO_VALUE if gain is None else f"{100 * gain.mean:+.1f}"
            )
        if any(gain.interval for gain in gains):
            row["95 % interval"] = (interval_text(gain) if gain else "") or NO_VALUE
        row |= {
            "class accuracy %": _percent(entry.values("class_accuracy")),
            "parameters": f"{parameters / 1e6:.2f} M" if parameters else NO_VALUE,
            "GMACs": NO_VALUE if cost is None or cost.gmacs is None else f"{cost.gmacs:.2f}",
            "ms per image": NO_VALUE if cost is None else _milliseconds(cost.milliseconds),
        }
        rows.append(row)
    return rows


def _classes(entries: Sequence[ReportEntry], classes: Classes) -> dict[str, Any]:
    """IoU of every class and entry, and the last student's gain over what it is compared with."""
    measured = [entry for entry in entries if entry.is_measured]
    students = [entry for entry in measured if not entry.is_teacher]
    last = students[-1] if students else None
    teacher = next((entry for entry in measured if entry.is_teacher), None)
    base = teacher.title if teacher is not None else None
    if last is not None and last.gain is not None:
        base, teacher = last.gain.to, None
    rows = []
    for name, color in zip(*classes, strict=True):
        values = [_part(entry.class_iou(name)) for entry in measured]
        gain = None
        if last is not None and last.gain is not None:
            gain = _part(last.class_gain(name))
        elif last is not None and teacher is not None:
            end, begin = last.class_iou(name), teacher.class_iou(name)
            gain = None if end is None or begin is None else 100 * (end - begin)
        rows.append({"name": name, "color": hex_color(color), "values": values, "gain": gain})
    gains = f"{last.title} {MINUS} {base}" if last is not None and base is not None else None
    return {
        "networks": [entry.title for entry in measured],
        "gains": gains,
        "rows": rows,
        "colors": [entries.index(entry) for entry in measured],
    }


def _confusions(entries: Sequence[ReportEntry], names: tuple[str, ...]) -> dict[str, Any]:
    """Heat maps of row-normalised confusion, and the largest mistakes of the last student."""
    maps = []
    listed: dict[str, Any] = {"title": "", "mistakes": []}
    for entry in entries:
        found = [np.array(counts, np.float64) for counts in entry.values("confusion")]
        if not found or any(counts.shape != (len(names), len(names)) for counts in found):
            continue
        counts: FloatArray = np.sum(found, axis=0)  # of all seeds together
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
        maps.append({"title": entry.title, **heat_map(100 * shares, SEQUENTIAL, 0, 100)})
        listed = {"title": entry.title, "mistakes": _mistakes(shares, names)}
    return {"maps": maps, **listed}


def _mistakes(shares: FloatArray, names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    wrong = np.nan_to_num(shares)
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(wrong, axis=None)[::-1][:CONFUSIONS_LISTED]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(names[i], names[j], _percent([wrong[i, j]])) for i, j in places if wrong[i, j] > 0]


def _ics(entries: Sequence[ReportEntry], views: dict[str, Views]) -> dict[str, Any]:
    matrices = {s.title: views[s.title].ics for s in entries if s.title in views}
    highest = max((float(matrix.max()) for matrix in matrices.values()), default=1.0)
    teacher = next((s.title for s in entries if s.is_teacher and s.title in views), None)
    maps = [
        {"title": title, **heat_map(matrix, SEQUENTIAL, 0.0, highest)}
        for title, matrix in matrices.items()
    ]
    differences = []
    if teacher is not None:
        target = matrices.pop(teacher)
        left = {title: unit_rows(matrix) - unit_rows(target) for title, matrix in matrices.items()}
        bound = max((float(np.abs(matrix).max()) for matrix in left.values()), default=1.0)
        for title, matrix in left.items():
            loss = ics_distance(matrices[title], target)
            differences.append(
                {
                    "title": f"{title} {MINUS} {teacher}",
                    "loss": f"{loss:.2g}",
                    **heat_map(matrix, DIVERGING, -bound, bound),
                }
            )
    return {"maps": maps, "differences": differences, "highest": f"{highest:.3g}"}


def _charts(entries: Sequence[ReportEntry]) -> list[Chart]:
    """mIoU and L_ICS of every run; the terms of the run that is shown of each entry."""
    students = [
        (entry.title, color, net)
        for color, entry in enumerate(entries)
        for net in entry.networks
        if not net.is_teacher and net.run is not None
    ]
    progress = [
        Line(title, steps, [100 * value for value in values], color)
        for title, color, net in students
        if net.run is not None
        for steps, values in [series(net.run.lines, MIOU)]
    ]
    steps = [step for line in progress for step in line.steps]
    for color, entry in enumerate(entries):
        level = entry.mean("miou") if entry.is_teacher else None
        if level is not None and steps:
            progress.append(Line(entry.title, [0, max(steps)], [100 * level] * 2, color))
    charts = [draw_chart("mIoU on the validation split, %", progress)]
    target = shared_teacher(net.history for _, _, net in students if net.history is not None)
    if target is not None and target.teacher is not None:
        charts.append(
            draw_chart(
                "L_ICS to the teacher on a few validation images",
                [
                    Line(title, *net.history.distances(target.teacher), color)
                    for title, color, net in students
                    if net.history is not None and net.history.images == target.images
                ],
            )
        )
    for entry in entries:
        net = entry.shown
        if entry.is_teacher or net.run is None:
            continue
        lines = net.run.lines
        terms = term_names(lines)
        charts.append(
            draw_chart(
                f"{net.title}: what each term adds to the loss",
                [_weighted(lines, name, number) for number, name in enumerate(terms)],
            )
        )
        charts.append(
            draw_chart(
                f"{net.title}: weights of the terms",
                [
                    Line(name, *series(lines, WEIGHT + name), number)
                    for number, name in enumerate(terms)
                ],
            )
        )
    return [chart for chart in charts if chart is not None]


def _weighted(lines: Sequence[dict[str, Any]], name: str, color: int) -> Line:
    # a step that was skipped may have no value
    kept = [line for line in lines if line.get(LOSS + name) is not None and WEIGHT + name in line]
    values = [line[LOSS + name] * line[WEIGHT + name] for line in kept]
    return Line(name, [line["step"] for line in kept], smooth(values), color)


def _repeat(title: str, run: FinishedRun) -> dict[str, str]:
    seconds = run.result.get("seconds")
    return {
        "title": title,
        "path": str(run.path),
        "command": f"aicsd {run.command} --config {RunFolder(run.path).config} --run NEW_FOLDER",
        "config": yaml.safe_dump(run.config, sort_keys=False),
        "seconds": NO_VALUE if seconds is None else f"{seconds:.0f} s",
    }


def _versions() -> str:
    found = [f"aicsd {__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {version(name)}" for name in LIBRARIES]
    machine = platform.machine() or "unknown machine"
    return f"{', '.join(found)}; {platform.system()} {machine}, {torch.get_num_threads()} threads"


def _milliseconds(time: float) -> str:
    return f"{time:.0f}" if time >= 10 else f"{time:.1f}"


def _percent(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return percent(known, places=1) if known else NO_VALUE


def _part(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else 100 * value
