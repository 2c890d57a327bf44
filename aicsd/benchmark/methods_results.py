"""Results of the cells of a benchmark, in one JSON file from which the table can be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from aicsd.benchmark.methods import Benchmark, Key, completed, identity_of
from aicsd.benchmark.statistics import Integers, parts_of
from aicsd.benchmark.timing import machine
from aicsd.errors import UserError, one_line
from aicsd.evaluation import ImageCounts, to_json
from aicsd.files import read_json, write_text
from aicsd.runs import FinishedRun, RunFolder

FORMAT = 1
RESULTS_FILE = "results.json"
FIGURES = ("miou", "class_accuracy", "pixel_accuracy", "parameters", "per_class_iou")
MEASURED = ("data.name", "data.val_split", "data.root", "protocol")


@dataclass(frozen=True)
class CellResult:
    """A finished training.

    Args:
        identity: the settings that made it.
        run: name of its folder.
        figures: miou, class_accuracy, pixel_accuracy, per_class_iou (fractions), parameters,
            epochs, images, weights (by term), seconds, step_seconds (None where no line of the log
            tells), teacher_miou (None without a teacher), labels (where the validation images have
            none: whose predictions took their place). Scores are None where no pixel has a label.
        parts: (N, 3, C) right, labelled and predicted pixels of every image of the validation
            split; None for a run of a version that did not count them.
    """

    identity: dict[str, Any]
    run: str
    figures: dict[str, Any]
    parts: Integers | None = None


@dataclass
class Results:
    """All finished cells.

    Args:
        path: path of the file.
        cells: by place in the table, short trainings included.
        unused: cells that the present benchmark file does not have; kept, to be used again.
        decided: epochs and weights that follow from other cells: options by what was decided.
        decided_for: digest of the options for which it was decided, by the same names.
        shown: parts of the benchmark for a table: students, seeds, rows, baseline.
    """

    path: Path
    cells: dict[Key, CellResult] = field(default_factory=dict)
    unused: list[CellResult] = field(default_factory=list)
    decided: dict[str, dict[str, Any]] = field(default_factory=dict)
    decided_for: dict[str, str] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    def find(self, identity: Mapping[str, Any]) -> CellResult | None:
        """The finished cell with these settings, whatever its name."""
        held = (*self.cells.values(), *self.unused)
        return next((cell for cell in held if cell.identity == identity), None)

    def add(self, key: Key, cell: CellResult) -> None:
        """Put a cell into its place.

        Raises:
            UserError: it was not measured on the images that the others were measured on.
        """
        for other, held in self.cells.items():
            if measured_on(held) != measured_on(cell):
                raise UserError(
                    f"{key} was measured on {measured_on(cell)} and {other} on "
                    f"{measured_on(held)}: they do not compare"
                )
            if not _same_labels(held, cell):
                raise UserError(
                    f"{key} and {other} do not compare: the masks of the validation images have "
                    "changed in between; take another folder for --runs and one for --out"
                )
        self.unused = [held for held in self.unused if held.identity != cell.identity]
        self.cells[key] = cell

    def describe(self, benchmark: Benchmark) -> None:
        """Note what the table shows, and set cells aside that it no longer has."""
        rows = [
            {
                "name": row.name,
                "compare_to": row.compare_to,
                "equal_time_of": row.match.row if row.match and row.is_control else None,
            }
            for row in benchmark.rows.values()
        ]
        self.shown = {
            "students": list(benchmark.students),
            "seeds": list(benchmark.seeds),
            "rows": rows,
            "baseline": benchmark.baseline,
        }
        self.unused += self.cells.values()
        self.cells = {}

    def save(self) -> None:
        """Write the file; figures that all cells share stand once."""
        every = [cell.identity for cell in (*self.cells.values(), *self.unused)]
        common = {
            name: value
            for name, value in (every[0] if every else {}).items()
            if all(name in other and other[name] == value for other in every)
        }
        labelled = next((c.parts[:, 1] for c in self.cells.values() if c.parts is not None), None)

        def plain(cell: CellResult, key: Key | None = None) -> dict[str, Any]:
            place = {} if key is None else key._asdict()
            own = {name: v for name, v in cell.identity.items() if name not in common}
            content = {**place, "run": cell.run, "settings": own, **cell.figures}
            if cell.parts is not None:
                if labelled is None or not np.array_equal(cell.parts[:, 1], labelled):
                    content["labelled"] = cell.parts[:, 1].ravel().tolist()
                content["right"] = cell.parts[:, 0].ravel().tolist()
                content["predicted"] = cell.parts[:, 2].ravel().tolist()
            return content

        content = {
            "format": FORMAT,
            "machine": machine(),
            **self.shown,
            "decided": self.decided,
            "decided_for": {
                name: self.decided_for[name] for name in self.decided if name in self.decided_for
            },
            "settings": common,
            "labelled": None if labelled is None else labelled.ravel().tolist(),
            "cells": [plain(cell, key) for key, cell in sorted(self.cells.items())],
            "unused": [plain(cell) for cell in self.unused],
        }
        write_text(self.path, to_json(content))


def read_results(path: Path) -> Results:
    """Results that :meth:`Results.save` wrote; empty without the file.

    Raises:
        UserError: another file.
    """
    results = Results(path)
    if not path.is_file():
        return results
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')}; this version reads {FORMAT}")
    try:
        results.decided = dict(content["decided"])
        results.decided_for = dict(content.get("decided_for", {}))
        results.shown = {key: content[key] for key in ("students", "seeds", "rows", "baseline")}
        for held in content["cells"]:
            key = Key(held.pop("student"), held.pop("row"), held.pop("seed"))
            results.cells[key] = _cell(held, content)
        results.unused = [_cell(held, content) for held in content["unused"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = one_line(f"{type(error).__name__} {error}")
        raise UserError(f"{path} holds no results of a benchmark: {reason}") from error
    return results


def _cell(held: dict[str, Any], content: Mapping[str, Any]) -> CellResult:
    identity = completed({**content["settings"], **held.pop("settings")})
    labelled = held.pop("labelled", content["labelled"])
    columns = [held.pop("right", None), labelled, held.pop("predicted", None)]
    parts = None
    if columns[0] is not None:
        classes = len(held["per_class_iou"])
        parts = np.stack([np.reshape(column, (-1, classes)) for column in columns], axis=1)
    return CellResult(identity, held.pop("run"), held, parts)


def measured_on(cell: CellResult) -> dict[str, Any]:
    """Images and settings of the measurement; figures compare if these are equal."""
    kept = {name: cell.identity[name] for name in MEASURED if name in cell.identity}
    if cell.figures.get("labels"):
        kept |= {"labels": cell.figures["labels"], "teacher": cell.identity["teacher"]}
    classes = ", ".join(cell.figures["per_class_iou"])
    return {**kept, "images": cell.figures["images"], "classes": classes}


def _same_labels(one: CellResult, other: CellResult) -> bool:
    """Whether every validation image has as many pixels of each class, as far as is known."""
    if one.parts is None or other.parts is None or one.figures.get("labels"):
        return True
    return np.array_equal(one.parts[:, 1], other.parts[:, 1])


def read_cell(folder: RunFolder) -> CellResult:
    """The result of a finished run.

    Raises:
        UserError: a file that cannot be read.
    """
    run = folder.read()
    counts = None
    if folder.image_counts.is_file():
        counts = parts_of(ImageCounts.load(folder.image_counts).matrices())
    teacher = run.result.get("teacher") or {}
    figures = {name: run.result.get(name) for name in FIGURES}
    figures |= {
        "images": run.result["images"],
        "epochs": run.config["epochs"],
        "weights": {name: term.get("weight", 1.0) for name, term in run.config["terms"].items()},
        "seconds": run.result.get("seconds"),
        "step_seconds": step_seconds(run),
        "teacher_miou": teacher.get("miou"),
        "labels": run.result.get("labels"),
    }
    return CellResult(identity_of(run.settings), folder.path.name, figures, counts)


def step_time(key: Key) -> str:
    """Key in ``decided`` of the ratio of a row's step time to the baseline's."""
    return f"{key.student} {key.row}: step time"


def ratio_from_logs(cell: CellResult, other: CellResult) -> float | None:
    """Time of a step of one run over that of another, as their logs have it."""
    own, others = cell.figures["step_seconds"], other.figures["step_seconds"]
    return None if own is None or others is None else own / others


def step_seconds(run: FinishedRun) -> float | None:
    """Median seconds of a step over the lines of a run's log: interruptions do not count."""
    config = run.config
    images = config["data"]["batch_size"] * config["optimizer"]["accumulate"]
    images *= config.get("devices", 1) * config.get("num_nodes", 1)
    rates = [line["images_per_second"] for line in run.lines if line.get("images_per_second")]
    return float(images / median(rates)) if rates else None
