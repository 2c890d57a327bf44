"""The report that a training leaves in its folder."""

from __future__ import annotations

from aicsd.data.protocol import SegDataset
from aicsd.engine.sanity import find_headroom
from aicsd.errors import one_line
from aicsd.messages import say
from aicsd.models import Segmenter
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.visualization.entries import each_alone
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
        remarks = [
            f"{key} was {before} before the run was resumed: its schedule is not that of one run."
            for key, before in run.resumed_from.items()
        ]
        if teacher is not None and run.result["teacher"].get("miou") is not None:
            headroom = find_headroom(folder.path, run.config, run.result["teacher"]["miou"])
            if headroom is not None and not run.is_alone:
                remarks.append(f"By the runs beside this one: {headroom}.")
        write_report(folder.report, each_alone(networks), val_data, images=images, remarks=remarks)
    except Exception as error:
        reason = one_line(f"{type(error).__name__} {error}", 300)
        say(f"no {folder.report.name}: {reason}", folder.path.name)
