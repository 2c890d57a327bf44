"""ICS matrices of teacher and students, and their differences, as labelled heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aicsd.visualization.figures import DIVERGING, MINUS, SEQUENTIAL, new_figure
from aicsd.visualization.views import FloatArray, ics_distance, unit_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 30
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
        names: of the C classes.
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


def _color_bar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """Of the last picture in a row of axes, all of which have one scale."""
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
