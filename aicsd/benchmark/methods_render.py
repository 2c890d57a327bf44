"""The table of a benchmark as Markdown, CSV, LaTeX and JSON, and gain against cost as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from aicsd.benchmark.methods_results import Results, measured_on
from aicsd.benchmark.methods_table import Line, Statistics, to_json
from aicsd.benchmark.render import csv_text
from aicsd.benchmark.statistics import Gain, percent
from aicsd.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

NOISE = "°"
"""Mark of a difference whose sign is within the noise."""
HEADER = (
    "student",
    "method",
    "seeds",
    "epochs",
    "val mIoU %",
    "gain [95 %]",
    "of the headroom",
    "gain at equal time [95 %]",
    "step time",
    "parameters",
)


def write_tables(statistics: Statistics, folder: Path, picture: bool = True) -> str:
    """Write ``table.md``, ``table.csv``, ``table.tex``, ``table.json`` and ``gain.png``.

    Args:
        statistics: statistics of the finished cells.
        folder: folder for the files.
        picture: whether to draw the plot, which takes longer than all else.

    Returns:
        The Markdown.

    Raises:
        UserError: a file cannot be written.
    """
    lines = statistics.lines()
    text = markdown(statistics, lines)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", as_csv(lines))
    write_text(folder / "table.tex", latex(lines))
    write_text(folder / "table.json", json.dumps(to_json(lines), indent=1) + "\n")
    if picture and any(line.gain is not None and line.cost is not None for line in lines):
        plot(lines, folder / "gain.png")
    return text


def markdown(statistics: Statistics, lines: Sequence[Line]) -> str:
    """The table, the weights that were tried, and what the columns mean."""
    if not lines:
        return "No training has finished.\n"
    rows = [HEADER, ("---",) * len(HEADER), *(_cells(line) for line in lines)]
    text = [_table(rows), _footer(statistics.results, lines)]
    missing = statistics.missing()
    if missing:
        text.append(f"Without a result: {'; '.join(missing)}.")
    baseline = statistics.results.shown["baseline"]
    for line in lines:
        teachers = statistics.teachers(line.student)
        if line.row == baseline and line.miou and teachers:
            text.append(f"{line.student}: {_headroom(teachers, line)}")
    tried = statistics.trials()
    if tried:
        trials: list[Sequence[str]] = [
            (
                student,
                row,
                ", ".join(f"{term} {weight:g}" for term, weight in weights.items()),
                percent([] if miou is None else [miou]),
            )
            for student, row, weights, miou in tried
        ]
        head = ("student", "short training", "weights", "val mIoU %")
        text.append(_table([head, ("---",) * 4, *trials]))
    return "\n\n".join(part.strip() for part in text) + "\n"


def _headroom(teachers: Sequence[float], alone: Line) -> str:
    """Headroom of each teacher."""
    level = sum(alone.miou) / len(alone.miou)
    found = []
    for score in teachers:
        points = f"{100 * abs(score - level):.2f} points"
        row = f"{alone.row} ({percent(alone.miou)} %)"
        lead = f"a headroom of {points} over {row}"
        if score <= level:
            lead = f"no headroom, for it is {points} below {row}"
        found.append(f"{100 * score:.2f} %, {lead}")
    if len(found) == 1:
        return f"the teacher has {found[0]}."
    return f"the teachers have {'; '.join(found)}."


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.student,
        line.row,
        str(len(line.seeds)),
        str(line.epochs),
        percent(line.miou),
        _gain(line.gain, line),
        "" if line.recovered is None else f"{round(100 * line.recovered)} %",
        _gain(line.at_equal_time, line),
        "" if line.cost is None else f"{line.cost:.2f}",
        f"{line.parameters / 1e6:.2f} M",
    )


def _gain(gain: Gain | None, line: Line) -> str:
    if gain is None:
        return ""
    text = f"{100 * gain.mean:+.2f}"
    if gain.interval is not None and len(gain.values) < len(line.seeds):
        text += f" ({len(gain.values)} seeds)"
    if gain.interval is None:
        return f"{text} (one seed){NOISE}"
    low, high = (100 * bound for bound in gain.interval)
    return f"{text} [{low:+.2f}, {high:+.2f}]{'' if gain.is_clear else NOISE}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in rows)


def _footer(results: Results, lines: Sequence[Line]) -> str:
    measured = measured_on(next(iter(results.cells.values())))
    gains = [gain for line in lines for gain in (line.gain, line.at_equal_time) if gain is not None]
    noise = "seeds and images" if all(gain.over_images for gain in gains) else "seeds"
    text = (
        f"Measured on {measured['data.name']} {measured['data.val_split']}, {measured['images']} "
        "images; ± is the standard deviation over the seeds."
    )
    if measured.get("labels"):
        text += f" No image has labels: mIoU is the agreement with the {measured['labels']}."
    if not any(line.miou for line in lines):
        text += " No pixel of these images has a label, so there is no mIoU."
    if gains:
        compared = " or ".join(dict.fromkeys(line.gain.to for line in lines if line.gain))
        text += (
            f" Gains are points of mIoU over {compared} with the same seed; the interval is over "
            f"{noise}; {NOISE}: within the noise. Step time: {results.shown['baseline']} is 1."
        )
    return text


def as_csv(lines: Sequence[Line]) -> str:
    """One row a line; fractions, empty where there is no number."""
    if not lines:
        return ""
    rows = []
    for line in lines:
        row: dict[str, object] = {
            "student": line.student,
            "method": line.row,
            "seeds": " ".join(map(str, line.seeds)),
            "epochs": line.epochs,
            "miou": mean(line.miou) if line.miou else None,
            "miou_of_each": " ".join(map(repr, line.miou)),
            "class_accuracy": mean(line.class_accuracy) if line.class_accuracy else None,
            "parameters": line.parameters,
            "step_time": line.cost,
            "recovered": line.recovered,
        }
        for name, gain in (("gain", line.gain), ("equal_time_gain", line.at_equal_time)):
            low, high = (None, None) if gain is None or gain.interval is None else gain.interval
            row |= {
                name: None if gain is None else gain.mean,
                f"{name}_low": low,
                f"{name}_high": high,
                f"{name}_clear": None if gain is None else gain.is_clear,
            }
        rows.append(row)
    return csv_text(rows)


def latex(lines: Sequence[Line]) -> str:
    """A tabular for the package booktabs; gains within the noise are grey (package xcolor)."""
    signs = {sign: rf"\{sign}" for sign in "%_&#${}"}
    signs |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special = str.maketrans({**signs, "±": r"$\pm$", NOISE: ""})

    def escaped(text: str, grey: bool = False) -> str:
        text = text.translate(special)
        return rf"\textcolor{{gray}}{{{text}}}" if grey else text

    body = []
    for line in lines:
        cells = [escaped(cell, grey=cell.endswith(NOISE)) for cell in _cells(line)]
        body.append(" & ".join(cells) + r" \\")
    head = " & ".join(map(escaped, HEADER)) + r" \\"
    return "\n".join(
        [
            r"\begin{tabular}{ll" + "r" * (len(HEADER) - 2) + "}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


PLACES = tuple(
    (side * distance, up, "left" if side > 0 else "right")
    for distance in (6, 30)
    for up in (4, -10, 14, -20, 24, -30, 34, -40)
    for side in (1, -1)
)
"""Places for the name of a point: offset right and up in points, and alignment."""


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw :func:`gain_figure` into a PNG."""
    figure = gain_figure(lines)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def gain_figure(lines: Sequence[Line]) -> Figure:
    """Gain with its interval against the time of a step; hollow: within the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=1)
    students = list(dict.fromkeys(line.student for line in lines))
    points, names = [], []
    for line in lines:
        if line.gain is None or line.cost is None:
            continue
        color = f"C{students.index(line.student)}"
        gain = 100 * line.gain.mean
        if line.gain.interval is not None:
            low, high = (100 * bound for bound in line.gain.interval)
            axes.plot([line.cost, line.cost], [low, high], color=color, linewidth=1.2)
        face = color if line.gain.is_clear else "white"
        points += axes.plot(line.cost, gain, "o", color=color, markerfacecolor=face)
        name = line.row if len(students) == 1 else f"{line.student} {line.row}"
        names.append(
            axes.annotate(
                name,
                (line.cost, gain),
                PLACES[0][:2],
                textcoords="offset points",
                fontsize=8,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
            )
        )
    axes.set_xlabel("time of a step, student alone = 1")
    axes.set_ylabel("gain, points of mIoU")
    axes.spines[["top", "right"]].set_visible(False)
    _separate(figure, names, points)
    return figure


def _separate(figure: Figure, names: Sequence[Annotation], points: Sequence[Artist]) -> None:
    """Move names to the first place in which they cover no other name and no point."""
    figure.draw_without_rendering()
    taken = [point.get_window_extent() for point in points]
    for name in names:
        for right, up, aligned in PLACES:
            name.xyann = (right, up)
            name.set(horizontalalignment=aligned)
            box = name.get_window_extent()
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
