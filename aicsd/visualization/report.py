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
from PIL import Image

from aicsd._version import __version__
from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.evaluation import evaluate
from aicsd.evaluation.cost import Cost, measure_costs
from aicsd.files import write_text
from aicsd.images import Color, UInt8Array, color_table
from aicsd.runs import FinishedRun, RunFolder
from aicsd.visualization.charts import Chart, Line, draw_chart, heat_map, jpeg, png
from aicsd.visualization.curves import LOSS, MIOU, WEIGHT, series, smooth, term_names
from aicsd.visualization.figures import DIVERGING, MINUS, SEQUENTIAL
from aicsd.visualization.ics_history import shared_teacher
from aicsd.visualization.runs import Network
from aicsd.visualization.views import (
    ERROR_PALETTE,
    FloatArray,
    Views,
    error_map,
    ics_distance,
    look,
    spread,
    unit_rows,
)

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_SIDE = 480
"""Longest side of a picture in the page, in pixels."""
LIBRARIES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy")
CONFUSIONS_LISTED = 6
NO_VALUE = "\N{EN DASH}"


def write_report(
    path: Path,
    networks: Sequence[Network],
    dataset: SegDataset,
    *,
    images: int = 6,
    notes: Sequence[str] = (),
) -> None:
    """Write the page that compares ``networks``.

    Args:
        path: HTML file; written beside its place and renamed.
        networks: teacher first; one without a model has only its figures shown.
        dataset: where the pictures come from.
        images: how many, spread evenly over ``dataset``; fewer if it has fewer.
        notes: what the reader should know is missing.

    Raises:
        UserError: an image that cannot be read, or a path that cannot be written.
    """
    indices = spread(dataset, images) if len(dataset) else []
    samples = [dataset.read(index) for index in indices]
    remarks = list(notes) + ([] if samples else ["The split has no images to show."])
    models = {net.title: net.model for net in networks if net.model is not None and samples}
    views = {title: look(model, samples) for title, model in models.items()}
    costs = measure_costs(models, *samples[0].mask.shape) if models else {}
    colors = {net.title: number for number, net in enumerate(networks)}
    runs = {net.title: net.run for net in networks if net.run is not None}
    names = [dataset.names[index] for index in indices]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("report.html.j2").render(
        title=" · ".join(net.run.path.name for net in networks if net.run and not net.is_teacher),
        verdict=verdict(networks),
        notes=remarks,
        table=_table(networks, costs),
        size=next(iter(costs.values()), None),
        classes=_classes(networks, dataset.classes),
        confusions=_confusions(networks, dataset.classes.names),
        names=dataset.classes.names,
        panels=_panels(samples, names, views, dataset.classes),
        legend=_legend(samples, views, dataset.classes),
        ics=_ics(networks, views),
        charts=_charts(runs, networks, colors),
        repeat=[_repeat(title, run) for title, run in runs.items()],
        versions=_versions(),
    )
    write_text(path, html)


def measure(network: Network, dataset: SegDataset) -> Network:
    """``network`` with metrics on the whole of ``dataset``."""
    if network.model is None:
        return network
    return replace(network, metrics=evaluate(network.model, dataset).to_dict())


def verdict(networks: Sequence[Network]) -> list[str]:
    """The result in sentences: gain over the student alone, and the part of the gap it closes."""
    teacher = next((net for net in networks if net.is_teacher and net.metrics), None)
    students = [net for net in networks if not net.is_teacher]
    alone = next((net for net in students if net.run and net.run.is_alone), None)
    sentences = []
    for net in students:
        text = f"{net.title}: {_percent(net.metrics['miou'])} % mIoU"
        if alone is not None and net is not alone:
            gain, gap = _gain(net, alone), _gain(teacher, alone)
            text += _points(gain, alone.title)
            if gain is not None and gap is not None and gain > 0 and gap > 0:
                text += f", {100 * gain / gap:.0f} % of its gap to the teacher"
        elif teacher is not None:
            text += _points(_gain(net, teacher), "the teacher")
        sentences.append(f"{text}.")
    if alone is not None and len(students) > 1:
        sentences.append(
            "Repeat the runs with other seeds before trusting a difference of a point or two."
        )
    return sentences


def _gain(network: Network | None, other: Network) -> float | None:
    """Difference of two mIoU; None where one was not measured, for want of labels."""
    one = None if network is None else network.metrics.get("miou")
    two = other.metrics.get("miou")
    return None if one is None or two is None else one - two


def _points(gain: float | None, other: str) -> str:
    return "" if gain is None else f", {100 * gain:+.1f} points against {other}"


def _table(networks: Sequence[Network], costs: dict[str, Cost]) -> list[dict[str, str]]:
    rows = []
    for net in networks:
        cost = costs.get(net.title)
        parameters = cost.parameters if cost else net.metrics.get("parameters")
        rows.append({
            "network": net.title,
            "mIoU %": _percent(net.metrics.get("miou")),
            "class accuracy %": _percent(net.metrics.get("class_accuracy")),
            "parameters": f"{parameters / 1e6:.2f} M" if parameters else NO_VALUE,
            "GMACs": NO_VALUE if cost is None or cost.gmacs is None else f"{cost.gmacs:.2f}",
            "ms per image": NO_VALUE if cost is None else _milliseconds(cost.milliseconds),
        })  # fmt: skip
    return rows


def _classes(networks: Sequence[Network], classes: Classes) -> dict[str, Any]:
    """IoU of every class and network, and the last student's gain over what it is compared with."""
    measured = [net for net in networks if net.metrics]
    students = [net for net in measured if not net.is_teacher]
    base = next((net for net in students if net.run and net.run.is_alone), None)
    base = base if base is not students[-1] else next((n for n in measured if n.is_teacher), None)
    rows = []
    for name, color in zip(*classes, strict=True):
        values = [_part(net.metrics["per_class_iou"].get(name)) for net in measured]
        end = students[-1].metrics["per_class_iou"].get(name)
        begin = base.metrics["per_class_iou"].get(name) if base is not None else None
        gain = None if end is None or begin is None else 100 * (end - begin)
        rows.append({"name": name, "color": _hex(color), "values": values, "gain": gain})
    gains = f"{students[-1].title} {MINUS} {base.title}" if base is not None else None
    return {"networks": [net.title for net in measured], "gains": gains, "rows": rows,
            "colors": [networks.index(net) for net in measured]}  # fmt: skip


def _confusions(networks: Sequence[Network], names: tuple[str, ...]) -> dict[str, Any]:
    """Heat maps of row-normalised confusion, and the largest mistakes of the last student."""
    maps = []
    listed: dict[str, Any] = {"title": "", "mistakes": []}
    for net in networks:
        counts = np.array(net.metrics.get("confusion") or [], dtype=np.float64)
        if counts.shape != (len(names), len(names)):
            continue
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
        maps.append({"title": net.title, **heat_map(100 * shares, SEQUENTIAL, 0, 100)})
        listed = {"title": net.title, "mistakes": _mistakes(shares, names)}
    return {"maps": maps, **listed}


def _mistakes(shares: FloatArray, names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    wrong = np.nan_to_num(shares)
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(wrong, axis=None)[::-1][:CONFUSIONS_LISTED]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(names[i], names[j], _percent(wrong[i, j])) for i, j in places if wrong[i, j] > 0]


def _panels(
    samples: Sequence[Sample], names: Sequence[str], views: dict[str, Views], classes: Classes
) -> list[dict[str, Any]]:
    panels = []
    for number, (sample, name) in enumerate(zip(samples, names, strict=True)):
        pictures = [("image", jpeg(_shrunk(sample.image, Image.Resampling.LANCZOS)))]
        pictures.append(("ground truth", _ids(sample.mask, classes.palette)))
        for title, view in views.items():
            pictures.append((title, _ids(view.masks[number], classes.palette)))
        errors = [
            (f"errors of {title}", _ids(error_map(sample.mask, view.masks[number]), ERROR_PALETTE))
            for title, view in views.items()
        ]
        panels.append({"name": name, "pictures": pictures, "errors": errors})
    return panels


def _ids(mask: UInt8Array, palette: tuple[Color, ...]) -> str:
    picture = Image.fromarray(_shrunk(mask, Image.Resampling.NEAREST))
    picture.putpalette(color_table(palette).tobytes())
    return png(picture)


def _shrunk(array: UInt8Array, filtered: Image.Resampling) -> UInt8Array:
    picture = Image.fromarray(array)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), filtered)
    return np.asarray(picture)


def _legend(
    samples: Sequence[Sample], views: dict[str, Views], classes: Classes
) -> list[tuple[str, str]]:
    """Name and colour of the classes that are to be seen."""
    masks = [sample.mask for sample in samples] + [m for view in views.values() for m in view.masks]
    shown = {int(value) for mask in masks for value in np.unique(mask)}
    entries = enumerate(zip(*classes, strict=True))
    return [(name, _hex(color)) for number, (name, color) in entries if number in shown]


def _ics(networks: Sequence[Network], views: dict[str, Views]) -> dict[str, Any]:
    matrices = {net.title: views[net.title].ics for net in networks if net.title in views}
    highest = max((float(matrix.max()) for matrix in matrices.values()), default=1.0)
    teacher = next((net.title for net in networks if net.is_teacher and net.title in views), None)
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
            differences.append({
                "title": f"{title} {MINUS} {teacher}", "loss": f"{loss:.2g}",
                **heat_map(matrix, DIVERGING, -bound, bound),
            })  # fmt: skip
    return {"maps": maps, "differences": differences, "highest": f"{highest:.3g}"}


def _charts(
    runs: dict[str, FinishedRun], networks: Sequence[Network], colors: dict[str, int]
) -> list[Chart]:
    students = [net for net in networks if not net.is_teacher and net.run is not None]
    progress = [
        Line(net.title, steps, [100 * value for value in values], colors[net.title])
        for net in students
        for steps, values in [series(runs[net.title].lines, MIOU)]
    ]
    teacher = next((net for net in networks if net.is_teacher and net.metrics), None)
    steps = [step for line in progress for step in line.steps]
    measured = teacher.metrics["miou"] if teacher is not None else None
    if teacher is not None and measured is not None and steps:
        level = 100 * measured
        progress.append(Line(teacher.title, [0, max(steps)], [level] * 2, colors[teacher.title]))
    charts = [draw_chart("mIoU on the validation split, %", progress)]
    histories = {net.title: net.history for net in students if net.history}
    target = shared_teacher(histories.values())
    if target is not None and target.teacher is not None:
        charts.append(draw_chart(
            "L_ICS to the teacher on a few validation images",
            [Line(title, *kept.distances(target.teacher), colors[title])
             for title, kept in histories.items() if kept.images == target.images],
        ))  # fmt: skip
    for net in students:
        lines = runs[net.title].lines
        terms = term_names(lines)
        charts.append(draw_chart(
            f"{net.title}: what each term adds to the loss",
            [_weighted(lines, name, number) for number, name in enumerate(terms)],
        ))  # fmt: skip
        charts.append(draw_chart(
            f"{net.title}: weights of the terms",
            [Line(name, *series(lines, WEIGHT + name), number)
             for number, name in enumerate(terms)],
        ))  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _weighted(lines: Sequence[dict[str, Any]], name: str, color: int) -> Line:
    kept = [line for line in lines if LOSS + name in line and WEIGHT + name in line]
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


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _part(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else 100 * value


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
