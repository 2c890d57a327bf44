"""aicsd predict."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from aicsd.cli.parser import Command
from aicsd.commands import predict
from aicsd.errors import UserError
from aicsd.inputs import open_model
from aicsd.messages import say

STREAM = "-"


def run(*, images: list[str], out: str, **options: Any) -> int:
    if out == STREAM:
        return _run_stream(images=images, **options)
    if STREAM in images:
        raise UserError("- reads standard input; its results go to standard output: --out -")
    begin = time.monotonic()
    done = predict(images=images, out=out, **options)
    failed = [outcome.error for outcome in done if outcome.error is not None]
    for error in failed:
        _complain(error)
    print(f"{_counted(sum(outcome.images for outcome in done), begin)}: results in {out}")
    return 2 if failed else 0


def _run_stream(
    model: str,
    images: list[str],
    outputs: tuple[str, ...] = (),
    recursive: bool = False,
    opacity: float = 0.5,
    batch_size: int = 1,
    workers: int = 2,
    device: str = "auto",
    **inference: Any,
) -> int:
    from aicsd.evaluation import InferenceConfig
    from aicsd.prediction import (
        PredictConfig,
        find_inputs,
        predict_stream,
        read_files,
        read_stream,
        stream_output,
    )

    config = PredictConfig(outputs, opacity, batch_size, workers, InferenceConfig(**inference))
    stream_output(config)
    if sys.stdout.isatty():
        raise UserError("standard output is a terminal; send it to a file or another program")
    if STREAM in images and len(images) > 1:
        raise UserError("- reads standard input, and cannot be combined with other inputs")
    inputs = [] if STREAM in images else find_inputs(images, recursive)
    for item in inputs:
        if item.is_video:
            raise UserError(f"{item.path} is a video; its results go to a folder: --out DIR")
    network = open_model(model, device)
    config = replace(config, device=str(network.mean.device))
    predicted = failed = 0
    begin = time.monotonic()
    source = read_files(inputs) if inputs else read_stream(sys.stdin.buffer)
    for result in predict_stream(network, source, config):
        if isinstance(result, UserError):
            failed += 1
            _complain(str(result))
        else:
            predicted += 1
            sys.stdout.buffer.write(result)
            sys.stdout.buffer.flush()  # for a program that takes image after image
    if predicted:
        print(_counted(predicted, begin), file=sys.stderr)
    return 2 if failed else 0


def _complain(error: str) -> None:
    say(f"error: {error}")


def _counted(images: int, begin: float) -> str:
    """Frames of videos are images too."""
    rate = images / max(time.monotonic() - begin, 1e-9)
    return f"{images} image{'' if images == 1 else 's'} ({rate:.1f} images/s)"


COMMAND = Command(predict, run, example="aicsd predict runs/aicsd photos --out predictions")
