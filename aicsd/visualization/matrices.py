"""ICS matrices of teacher and students, and their differences, as labelled heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from aicsd.images import UInt8Array
from aicsd.visualization.figures import (
    DIVERGING,
    MINUS,
    OKABE_ITO,
    SEQUENTIAL,
    new_figure,
    trim,
)
from aicsd.visualization.ics_history import ICSHistory, shared_teacher
from aicsd.visualization.views import FloatArray, ics_distance, unit_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 30
MOST_STEPS = 5
"""Steps of a training whose matrices are drawn."""
SHEET_SIDE = 160
"""Least side of a matrix in a sheet, in pixels."""
LEGEND = """Row i, column j: how far the places
where class i is expected are
from those of class j.
0: the same places.

On the right: what is left of the
difference to the teacher, rows
at length 1 as in the loss"""


def draw_ics(
    teacher: tuple[str, FloatArray] | None,
    students: Mapping[str, FloatArray],
    names: tuple[str, ...],
) -> Figure:
    """Upper row: ICS matrices in nats, one scale; lower row: students minus teacher, one scale.

    The lower row compares as the loss does by default: rows brought to length 1.

    Args:
        teacher: its title and matrix (C, C); without one there is no lower row.
        students: their matrices (C, C) by title.
        names: names of the C classes.
    """
    matrices = {teacher[0]: teacher[1], **students} if teacher is not None else dict(students)
    rows, columns = (2 if teacher is not None and students else 1), len(matrices)
    width = max(4.5, 2.9 * columns)
    figure = new_figure(width, 0.5 + rows * (width - 1.2) / max(columns, 1.6))
    axes = figure.subplots(rows, columns, squeeze=False)
    largest = max(float(matrix.max()) for matrix in matrices.values())
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        axis.imshow(matrix, cmap=SEQUENTIAL, vmin=0, vmax=largest)
        axis.set_title(title, fontsize=10)
        _label(axis, names, left=axis is axes[0, 0], below=rows == 1)
    _color_bar(figure, axes[0], "KL(row ‖ column), nats")
    if teacher is None or not students:
        return figure
    axes[1, 0].set_axis_off()
    axes[1, 0].text(0.5, 0.5, LEGEND, ha="center", va="center", fontsize=9, linespacing=1.5)
    target = unit_rows(teacher[1])
    differences = {title: unit_rows(matrix) - target for title, matrix in students.items()}
    bound = max(float(np.abs(matrix).max()) for matrix in differences.values()) or 1.0
    for number, (title, matrix) in enumerate(differences.items(), start=1):
        axis = axes[1, number]
        axis.imshow(matrix, cmap=DIVERGING, vmin=-bound, vmax=bound)
        loss = ics_distance(students[title], teacher[1])
        axis.set_title(f"{title} {MINUS} {teacher[0]}\nL_ICS = {loss:.2g}", fontsize=9)
        _label(axis, names, left=number == 1, below=True)
    _color_bar(figure, axes[1], "difference of unit rows")
    return figure


def draw_ics_training(histories: Mapping[str, ICSHistory], names: tuple[str, ...]) -> Figure | None:
    """A row of each run's ICS matrices, first step to last, then its teacher's; L_ICS below.

    The curves are of the runs that saw the same images as the first one with a teacher.

    Args:
        histories: by the title of the run; those with one matrix only are left out.
        names: names of the C classes.
    """
    histories = {title: kept for title, kept in histories.items() if len(kept.steps) > 1}
    if not histories:
        return None
    target = shared_teacher(histories.values())
    columns = min(MOST_STEPS, max(len(kept.steps) for kept in histories.values())) + 1
    cell, rows = 1.9, len(histories)
    curve = 0.0 if target is None else 2.2
    figure = new_figure(1.4 + cell * columns, 0.4 + (cell + 0.2) * rows + curve)
    grid = figure.add_gridspec(
        rows + (curve > 0), columns, height_ratios=[cell] * rows + [curve] * (curve > 0)
    )
    matrices = [m for kept in histories.values() for m in (*kept.steps.values(), kept.teacher)]
    largest = max(float(matrix.max()) for matrix in matrices if matrix is not None)
    for row, (title, kept) in enumerate(histories.items()):
        steps = list(kept.steps)
        picked = np.unique(np.linspace(0, len(steps) - 1, columns - 1).round().astype(int))
        shown = {f"step {steps[place]}": kept.steps[steps[place]] for place in picked}
        if kept.teacher is not None:
            shown["teacher"] = kept.teacher
        axes = [figure.add_subplot(grid[row, column]) for column in range(len(shown))]
        for axis, (label, matrix) in zip(axes, shown.items(), strict=True):
            axis.imshow(matrix, cmap=SEQUENTIAL, vmin=0, vmax=largest)
            axis.set_title(label, fontsize=9)
            _label(axis, names, left=axis is axes[0], below=False)
            axis.set_xticks([])
        axes[0].set_ylabel(title, fontsize=10)
        if row == 0:
            _color_bar(figure, axes, "nats")
    if target is not None and target.teacher is not None:
        axis = figure.add_subplot(grid[rows, :])
        for number, (title, kept) in enumerate(histories.items()):
            if kept.images == target.images:
                color = OKABE_ITO[number % len(OKABE_ITO)]
                axis.plot(*kept.distances(target.teacher), ".-", color=color, lw=1.4, label=title)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("L_ICS to the teacher", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
        trim(axis)
    return figure


def matrix_sheet(matrices: Sequence[FloatArray]) -> UInt8Array:
    """(C, C) matrices side by side on one scale as a small (H, W, 3) RGB picture, unlabelled."""
    largest = max(float(matrix.max()) for matrix in matrices) or 1.0
    zoom = -(-SHEET_SIDE // len(matrices[0]))
    tiles = []
    for matrix in matrices:
        grey = np.rint(255 * np.clip(matrix / largest, 0, 1)).astype(np.uint8)
        grey = np.pad(grey.repeat(zoom, axis=0).repeat(zoom, axis=1), zoom, constant_values=255)
        tiles.append(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1])
    sheet: UInt8Array = np.ascontiguousarray(np.concatenate(tiles, axis=1), dtype=np.uint8)
    return sheet


def _color_bar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """Draw the colour bar of a row of axes that share one scale."""
    bar = figure.colorbar(axes[-1].images[0], ax=list(axes), shrink=0.8, pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _label(axis: Axes, names: tuple[str, ...], *, left: bool, below: bool) -> None:
    if len(names) > MOST_LABELS:
        return
    places = range(len(names))
    axis.set_xticks(places, names if below else [], rotation=90, fontsize=8)
    axis.set_yticks(places, names if left else [], fontsize=8)
    axis.tick_params(length=0)
