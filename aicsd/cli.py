"""The command line: parse, build, call. It decides nothing."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2

from aicsd.config import (
    CONFIG_FILE,
    ConfigParser,
    bracket_scales,
    config_from_namespace,
    config_parser,
)
from aicsd.errors import UserError

TRAIN_HELP = "train a network on labels alone: a teacher, or a student without one"
DISTILL_HELP = "distil a teacher into a student"
EVALUATE_HELP = "metrics of a trained model on a split of a dataset"
PREDICT_HELP = "class-id PNGs and coloured overlays of images"
DATA_HELP = "check a dataset, or fetch one: aicsd data check, aicsd data prepare"
SUBMIT_HELP = "predictions as the archive that the VOC or Cityscapes server takes"
IMPORT_HELP = "turn a checkpoint of the published AICSD code into a model file"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one line on standard error for what a user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get("AICSD_DEBUG")
    try:
        sys.exit(_run(arguments))
    except UserError as error:
        if debug:
            raise
        print(f"aicsd: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def build_parser() -> ConfigParser:
    """The parser of all commands."""
    from aicsd import __version__
    from aicsd.engine.config import DistillConfig, TrainConfig

    parser = ConfigParser(
        prog="aicsd",
        version=__version__,
        description="Distil a large semantic-segmentation network into a small one.",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    commands.add_subcommand("train", config_parser(TrainConfig), help=TRAIN_HELP)
    commands.add_subcommand("distill", config_parser(DistillConfig), help=DISTILL_HELP)
    commands.add_subcommand("evaluate", _evaluate_parser(), help=EVALUATE_HELP)
    commands.add_subcommand("predict", _predict_parser(), help=PREDICT_HELP)
    commands.add_subcommand("submit", _submit_parser(), help=SUBMIT_HELP)
    commands.add_subcommand("import", _import_parser(), help=IMPORT_HELP)
    data = ConfigParser(description=DATA_HELP)
    commands.add_subcommand("data", data, help=DATA_HELP)
    actions = data.add_subcommands(title="actions", metavar="ACTION")
    actions.add_subcommand("check", _check_parser(), help="find files that cannot be used")
    actions.add_subcommand("prepare", _prepare_parser(), help="download, unpack and check")
    return parser


def _data_arguments(parser: ConfigParser, splits: str, split: str = "val") -> None:
    parser.add_argument(
        "--data.name", type=str, default="digits",
        help="digits, voc, cityscapes, camvid or folder",
    )  # fmt: skip
    parser.add_argument("--data.root", type=str | None, help="folder that holds the dataset")
    parser.add_argument("--data.split", type=str, default=split, help=splits)
    parser.add_argument(
        "--data.options", type=dict[str, int | float | str | bool], default={},
        help="further options of the dataset",
    )  # fmt: skip


def _evaluate_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=EVALUATE_HELP)
    parser.add_argument("model", type=str, help="run folder, safetensors file or checkpoint")
    _data_arguments(parser, "split to evaluate on")
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


def _predict_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=PREDICT_HELP)
    parser.add_argument("model", type=str, help="run folder, safetensors file or checkpoint")
    parser.add_argument("images", type=str, nargs="+", help="image files or folders of images")
    parser.add_argument("--out", type=str, required=True, help="folder for the results")
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def _submit_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=SUBMIT_HELP)
    parser.add_argument("model", type=str, help="run folder or model file")
    _data_arguments(parser, "split to predict", "test")
    parser.add_argument(
        "-o", "--out", type=str, required=True, help="archive: .tgz for voc, .zip for cityscapes"
    )
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def _import_parser() -> ConfigParser:
    parser = ConfigParser(description=IMPORT_HELP)
    parser.add_argument("checkpoint", type=str, help="NAME.pth.tar, .pth or .pt")
    parser.add_argument("-o", "--out", type=str, required=True, help="safetensors file to write")
    parser.add_argument(
        "--output_stride", type=int, default=16,
        help="that the network was trained at: 8 or 16; the weights do not tell",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=str | None,
        help="file with a class name a line; without it VOC for 21 and Cityscapes for 19 classes",
    )  # fmt: skip
    return parser


def _check_parser() -> ConfigParser:
    parser = ConfigParser(
        description="Decode every image and mask; name those that cannot be used."
    )
    _data_arguments(parser, "splits to check, separated by commas", "train,val")
    return parser


def _prepare_parser() -> ConfigParser:
    parser = ConfigParser(
        description="Download a dataset where its owners allow it, unpack it and check it."
    )
    parser.add_argument("dataset", type=str, help="voc, sbd, cityscapes or camvid")
    parser.add_argument("--root", type=str, required=True, help="folder that gets the dataset")
    return parser


def _run(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore", module="jsonargparse")
    # a broken image is one line of ours; OpenCV would add its own to it
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    parser = build_parser()
    values = parser.instantiate(parser.parse_args(bracket_scales(_expand_resume(arguments))))
    command = values.subcommand
    options = values[command]
    if command in ("train", "distill"):
        return _fit(command, options)
    if command == "evaluate":
        return _evaluate(options)
    if command == "predict":
        return _predict(options)
    if command == "submit":
        return _submit(options)
    if command == "import":
        return _import(options)
    if options.subcommand == "prepare":
        return _prepare(options.prepare)
    return _check(options.check)


def _expand_resume(arguments: list[str]) -> list[str]:
    """``--resume`` alone means true, and ``--run R --resume`` needs no more: R has the settings."""
    with_value = ("--config=", "--resume=", "--run=")
    split = (a.split("=", 1) if a.startswith(with_value) else [a] for a in arguments)
    arguments = [part for parts in split for part in parts]
    if "--resume" not in arguments:
        return arguments
    place = arguments.index("--resume")
    if arguments[place + 1 : place + 2] not in (["true"], ["false"]):
        arguments = [*arguments[: place + 1], "true", *arguments[place + 1 :]]
    if "--config" in arguments or arguments[place + 1] == "false":
        return arguments
    runs = [value for flag, value in pairwise(arguments) if flag == "--run"]
    saved = Path(runs[-1]) / CONFIG_FILE if runs else None
    if saved is None or not saved.is_file():
        return arguments
    return [arguments[0], "--config", str(saved), *arguments[1:]]


def _evaluate(options: Any) -> int:
    from aicsd.data import open_dataset
    from aicsd.engine.logging import progress_bar
    from aicsd.evaluation import evaluate, short_side_of
    from aicsd.files import write_text
    from aicsd.models import load_model

    model = load_model(options.model).to(pick_device(options.device))
    data = options.data
    dataset = open_dataset(data.name, data.root, data.split, data.options)
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(dataset), note="")
        metrics = evaluate(
            model, dataset, batch_size=options.batch_size, workers=options.workers,
            inference=_inference(options), boundary=options.boundary,
            short_side=short_side_of(options.protocol, options.short_side),
            advance=lambda images: bar.advance(task, images),
        )  # fmt: skip
    if options.json is not None:
        write_text(Path(options.json), json.dumps(metrics.to_dict(), indent=1) + "\n")
    print_metrics(metrics)
    return 0


def _inference(options: Any) -> Any:
    from aicsd.evaluation import InferenceConfig

    return InferenceConfig(**{field.name: options[field.name] for field in fields(InferenceConfig)})


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


def _predict(options: Any) -> int:
    from aicsd.engine.logging import progress_bar
    from aicsd.evaluation.predict import find_images, predict_files
    from aicsd.models import load_model

    images = find_images(options.images)
    model = load_model(options.model).to(pick_device(options.device))
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(images), note="")
        for _ in predict_files(
            model, images, Path(options.out), options.opacity, _inference(options)
        ):
            bar.advance(task)
    print(f"{len(images)} images: class ids and overlays in {options.out}")
    return 0


def _submit(options: Any) -> int:
    from aicsd.data import open_images
    from aicsd.engine.logging import progress_bar
    from aicsd.evaluation.inference import predict_ids
    from aicsd.evaluation.submission import check_submission, write_submission
    from aicsd.models import load_model

    data, out = options.data, Path(options.out)
    model = load_model(options.model).to(pick_device(options.device))
    server = check_submission(data.name, model.classes, out)
    images = open_images(data.name, data.root, data.split, data.options)
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(images), note="")
        write_submission(
            server, images, data.split, partial(predict_ids, model, config=_inference(options)),
            out, advance=lambda: bar.advance(task),
        )  # fmt: skip
    print(f"{out}: {len(images)} predictions, checked")
    return 0


def _import(options: Any) -> int:
    from aicsd.data.folder import read_classes
    from aicsd.models import import_checkpoint, save_model

    source, out = Path(options.checkpoint), Path(options.out)
    if out.suffix != ".safetensors":
        raise UserError(f"out: {out} must end in .safetensors")
    if out.exists():
        raise UserError(f"out: {out} exists; choose another file or remove it")
    classes = read_classes(Path(options.classes)) if options.classes is not None else None
    model, info = import_checkpoint(source, options.output_stride, classes)
    save_model(model, out, info)
    assert model.architecture is not None
    told = [f"{key} {info[key]:.6g}" for key in ("epoch", "best_pred") if info[key] is not None]
    print(
        f"{out}: {model.architecture['backbone']}, {len(model.classes.names)} classes "
        f"({model.classes.names[0]} to {model.classes.names[-1]}), "
        f"{', '.join([f'{model.num_parameters() / 1e6:.2f} M parameters', *told])}"
    )
    if info["left_out"]:
        print(f"{source}: left out, as no logit depends on them: {', '.join(info['left_out'])}",
              file=sys.stderr)  # fmt: skip
    return 0


def _check(options: Any) -> int:
    from aicsd.data import survey

    data = options.data
    unusable = 0
    for split in (name.strip() for name in data.split.split(",")):
        images, problems, notes = survey(data.name, data.root, split, data.options)
        for line in problems:
            print(f"aicsd: error: {line}", file=sys.stderr)
        print(f"{split}: {images} images, {len(problems)} cannot be used")
        for line in notes:
            print(f"{split}: note: {line}")
        unusable += len(problems)
    return 2 if unusable else 0


def _prepare(options: Any) -> int:
    from aicsd.data.prepare import prepare
    from aicsd.engine.logging import progress_bar

    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{what} (MB)", note="")
            size = None if total is None else total // 10**6
            bar.update(tasks[what], completed=done // 10**6, total=size)

        text = prepare(options.dataset, Path(options.root), show)
    print(text)
    return 0


def pick_device(name: str) -> str:
    """auto -> the best device of this machine."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator.type if accelerator is not None else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return name


def _fit(command: str, options: Any) -> int:
    from aicsd.api import run_distillation, run_training
    from aicsd.engine.config import DistillConfig, TrainConfig
    from aicsd.engine.stop import Interrupted

    try:
        if command == "train":
            run = run_training(config_from_namespace(TrainConfig, options))
        else:
            run = run_distillation(config_from_namespace(DistillConfig, options))
    except Interrupted as stop:
        print(f"aicsd: {stop}; go on with --resume", file=sys.stderr)
        return 130
    print(f"{run.path}: val mIoU {run.metrics['miou']:.4f}, "
          f"{run.metrics['parameters'] / 1e6:.2f} M parameters, "
          f"{run.metrics['seconds']:.0f} s of training")  # fmt: skip
    return 0
