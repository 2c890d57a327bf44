"""The report that a training leaves in its folder."""

from __future__ import annotations

import sys

from aicsd.data.protocol import SegDataset
from aicsd.models import Segmenter
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.visualization.ics_history import read_history
from aicsd.visualization.report import write_report
from aicsd.visualization.runs import Network


def write_run_report(
    folder: RunFolder,
    student: Segmenter,
    teacher: Teacher | None,
    val_data: SegDataset,
    images: int,
) -> None:
    """Write the report; whatever goes wrong with it must not fail a training that is done."""
    try:
        run = folder.read()
        history = read_history(folder.path)
        networks = [Network(run.title, student, run.result, run, history=history)]
        if teacher is not None:
            measured = run.result["teacher"]
            networks.insert(0, Network("teacher", teacher.model, measured, None, is_teacher=True))
        write_report(folder.report, networks, val_data, images=images)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        print(f"{folder.path.name}: no {folder.report.name}: {reason}", file=sys.stderr)
