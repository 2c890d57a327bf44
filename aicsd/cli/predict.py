"""aicsd predict."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicsd.cli.common import inference_of, open_model
from aicsd.config import ConfigParser
from aicsd.errors import UserError

if TYPE_CHECKING:  # the command line starts without torch
    from aicsd.prediction import PredictConfig

HELP = "class-id PNGs and coloured overlays of images, folders, videos and pipelines"
STREAM = "-"


def build_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=HELP)
    parser.add_argument(
        "model", type=str, help="run folder, model file, exported .onnx or .xml, or hf:user/name"
    )
    parser.add_argument(
        "images", type=str, nargs="+",
        help="images, folders of images, videos, quoted patterns such as 'photos/**/*.jpg'; "
        "- reads images from standard input",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the results; - is standard output"
    )
    parser.add_argument(
        "--outputs", type=str | None,
        help="some of ids,overlay,color,probabilities; without it ids and overlay of images, the "
        "overlay of videos, ids on standard output",
    )  # fmt: skip
    parser.add_argument(
        "--recursive", type=bool, default=False,
        help="folders with all below them; the results keep the subfolders",
    )  # fmt: skip
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    parser.add_argument(
        "--batch_size", type=int, default=1,
        help="images of equal size, or frames, in one forward pass",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=2,
        help="threads that read and write while the network computes; 0: one after the other",
    )  # fmt: skip
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def run(options: Any) -> int:
    from aicsd.prediction import PredictConfig, read_outputs

    config = PredictConfig(
        read_outputs(options.outputs), options.opacity, options.batch_size, options.workers,
        inference_of(options),
    )  # fmt: skip
    return (_run_stream if options.out == STREAM else _run_files)(options, config)


def _run_files(options: Any, config: PredictConfig) -> int:
    from aicsd.prediction import count_images, find_inputs, plan_results, predict_files
    from aicsd.terminal import progress_bar

    if STREAM in options.images:
        raise UserError("- reads standard input; its results go to standard output: --out -")
    out = Path(options.out)
    inputs = find_inputs(options.images, options.recursive, out)
    plan_results(inputs, out, config)
    model, device = open_model(options.model, options.device)
    images = failed = 0
    begin = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=count_images(inputs), note="")
        for outcome in predict_files(
            model, inputs, out, replace(config, device=device), lambda: bar.advance(task)
        ):
            images += outcome.images
            if outcome.error is not None:
                failed += 1
                _complain(outcome.error)
    print(f"{_counted(images, begin)}: results in {out}")
    return 2 if failed else 0


def _run_stream(options: Any, config: PredictConfig) -> int:
    from aicsd.prediction import find_inputs, predict_stream, read_files, read_stream, stream_output

    stream_output(config)
    if sys.stdout.isatty():
        raise UserError("standard output is a terminal; send it to a file or another program")
    if STREAM in options.images and len(options.images) > 1:
        raise UserError("- reads standard input, and nothing else beside it")
    inputs = [] if STREAM in options.images else find_inputs(options.images, options.recursive)
    for item in inputs:
        if item.is_video:
            raise UserError(f"{item.path} is a video; its results go to a folder: --out DIR")
    model, device = open_model(options.model, options.device)
    images = failed = 0
    begin = time.monotonic()
    source = read_files(inputs) if inputs else read_stream(sys.stdin.buffer)
    for result in predict_stream(model, source, replace(config, device=device)):
        if isinstance(result, UserError):
            failed += 1
            _complain(str(result))
        else:
            images += 1
            sys.stdout.buffer.write(result)
            sys.stdout.buffer.flush()  # for a program that takes image after image
    if images:
        print(_counted(images, begin), file=sys.stderr)
    return 2 if failed else 0


def _complain(error: str) -> None:
    print(f"aicsd: error: {error}", file=sys.stderr)


def _counted(images: int, begin: float) -> str:
    """Frames of videos are images too."""
    rate = images / max(time.monotonic() - begin, 1e-9)
    return f"{images} image{'' if images == 1 else 's'} ({rate:.1f} images/s)"
