"""aicsd evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from aicsd.cli.common import data_arguments, inference_of, pick_device
from aicsd.config import ConfigParser

HELP = "metrics of a trained model on a split of a dataset"


def build_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=HELP)
    parser.add_argument(
        "model", type=str, help="run folder, model file, exported .onnx or .xml, or hf:user/name"
    )
    data_arguments(parser, "split to evaluate on")
    parser.add_argument(
        "--protocol", type=Literal["standard", "released"], default="standard",
        help="released: image and labels resized, as the published code does",
    )  # fmt: skip
    parser.add_argument(
        "--short_side", type=int | None,
        help="resize image and labels to this shorter side in pixels; released alone means 513",
    )  # fmt: skip
    parser.add_argument("--boundary", type=bool, default=False, help="boundary IoU too")
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--json", type=str | None, help="file that gets the metrics as JSON")
    parser.add_argument("--batch_size", type=int, default=4, help="images per forward pass")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def run(options: Any) -> int:
    from aicsd.data import open_dataset
    from aicsd.evaluation import evaluate, short_side_of, to_json
    from aicsd.files import write_text
    from aicsd.models import load_model
    from aicsd.terminal import progress_bar

    model = load_model(options.model).to(pick_device(options.device))
    data = options.data
    dataset = open_dataset(data.name, data.root, data.split, data.options)
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(dataset), note="")
        metrics = evaluate(
            model, dataset, batch_size=options.batch_size, workers=options.workers,
            inference=inference_of(options), boundary=options.boundary,
            short_side=short_side_of(options.protocol, options.short_side),
            advance=lambda images: bar.advance(task, images),
        )  # fmt: skip
    if options.json is not None:
        write_text(Path(options.json), to_json(metrics.to_dict()))
    print_metrics(metrics)
    return 0


def print_metrics(metrics: Any) -> None:
    """The table of one evaluation."""
    from rich.console import Console
    from rich.table import Table

    def percent(value: float) -> str:
        return "-" if value != value else f"{100 * value:.2f}"

    columns = {"IoU %": metrics.per_class_iou, "accuracy %": metrics.per_class_accuracy}
    if metrics.per_class_boundary_iou is not None:
        columns["boundary IoU %"] = metrics.per_class_boundary_iou
    table = Table("class", *columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in metrics.per_class_iou:
        table.add_row(name, *(percent(values[name]) for values in columns.values()))
    Console().print(table)
    boundary = metrics.boundary_iou
    print(
        f"mIoU {percent(metrics.miou)}  pixel accuracy {percent(metrics.pixel_accuracy)}  "
        f"class accuracy {percent(metrics.class_accuracy)}  FWIoU {percent(metrics.fwiou)}  "
        f"{'' if boundary is None else f'boundary IoU {percent(boundary)}  '}"
        f"({metrics.images} images)"
    )
