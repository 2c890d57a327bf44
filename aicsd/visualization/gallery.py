"""All pictures of some runs, each as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aicsd.data.protocol import SegDataset
from aicsd.visualization.curves import draw_curves
from aicsd.visualization.distributions import draw_distributions
from aicsd.visualization.figures import save_figure
from aicsd.visualization.matrices import draw_ics, draw_ics_training
from aicsd.visualization.panels import draw_panels
from aicsd.visualization.runs import Network
from aicsd.visualization.views import predict_views


def save_gallery(
    networks: Sequence[Network], dataset: SegDataset, indices: Sequence[int], out: Path
) -> Iterator[Path]:
    """Write the pictures and yield each file: panels, ics, ics_training, curves, distributions/*.

    Args:
        networks: to compare; those whose model is missing are left out.
        dataset: where the images come from.
        indices: which samples; the ICS matrices are means over them.
        out: folder for the pictures.
    """
    models = {net.title: net.model for net in networks if net.model is not None}
    samples = [dataset.read(index) for index in indices]
    views = {title: predict_views(model, samples) for title, model in models.items()}
    predictions = {title: view.masks for title, view in views.items()}
    figure = draw_panels(samples, predictions, dataset.classes, errors=True)
    yield from save_figure(figure, out / "panels")
    teacher = next((net.title for net in networks if net.is_teacher and net.model), None)
    students = {title: view.ics for title, view in views.items() if title != teacher}
    target = (teacher, views[teacher].ics) if teacher is not None else None
    figure = draw_ics(target, students, dataset.classes.names)
    yield from save_figure(figure, out / "ics")
    trained = [net for net in networks if net.run and not net.is_teacher]
    histories = {net.title: net.history for net in trained if net.history is not None}
    training = draw_ics_training(histories, dataset.classes.names)
    if training is not None:
        yield from save_figure(training, out / "ics_training")
    logs = {net.title: net.run.lines for net in trained if net.run and net.run.lines}
    if logs:
        yield from save_figure(draw_curves(logs), out / "curves")
    for index, sample in zip(indices, samples, strict=True):
        for title, model in models.items():
            figure = draw_distributions(model, sample, dataset.classes)
            name = f"{dataset.names[index]}-{as_file_name(title)}"
            yield from save_figure(figure, out / "distributions" / name)


def as_file_name(title: str) -> str:
    """``student AICSD (a/b)`` -> ``student-AICSD-a-b``."""
    return re.sub(r"[^\w.+-]+", "-", title).strip("-")
