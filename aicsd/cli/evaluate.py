"""aicsd evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aicsd.cli.parser import Command
from aicsd.commands import evaluate

if TYPE_CHECKING:
    from aicsd.evaluation import Metrics


def run(**options: Any) -> int:
    print_metrics(evaluate(**options))
    return 0


def print_metrics(metrics: Metrics) -> None:
    """The table of one evaluation."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def percent(value: float) -> str:
        return "-" if value != value else f"{100 * value:.2f}"

    columns = {"IoU %": metrics.per_class_iou, "accuracy %": metrics.per_class_accuracy}
    if metrics.per_class_boundary_iou is not None:
        columns["boundary IoU %"] = metrics.per_class_boundary_iou
    table = Table("class", *columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in metrics.per_class_iou:
        # as Text: rich could take parts of a name for markup
        table.add_row(Text(name), *(percent(values[name]) for values in columns.values()))
    Console().print(table)
    scores = {
        "mIoU": metrics.miou,
        "pixel accuracy": metrics.pixel_accuracy,
        "class accuracy": metrics.class_accuracy,
        "FWIoU": metrics.fwiou,
        "boundary IoU": metrics.boundary_iou,
        "confidence": metrics.confidence,
        "calibration error": metrics.calibration_error,
    }
    known = [f"{name} {percent(value)}  " for name, value in scores.items() if value is not None]
    print(f"{''.join(known)}({metrics.images} images)")


COMMAND = Command(evaluate, run, example="aicsd evaluate runs/aicsd --json metrics.json")
