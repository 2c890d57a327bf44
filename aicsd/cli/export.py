"""aicsd export."""

from __future__ import annotations

import math
from typing import Any

from aicsd.cli.parser import Command
from aicsd.commands import ExportResult, export
from aicsd.formats import FORMATS
from aicsd.types import Output


def run(*, output: Output = "logits", int8: bool = False, **options: Any) -> int:
    done = export(output=output, int8=int8, **options)
    images = "images (B, H, W, 3)"
    if done.size is not None:
        images = f"image (1, {done.size[0]}, {done.size[1]}, 3)"
    print(
        f"{done.path}: {done.format.name}, {images} uint8 RGB -> {output}, "
        f"{done.format.bytes(done.path) / 1e6:.1f} MB; {'before INT8 ' if int8 else ''}"
        f"{_parity(done, output)}"
    )
    if done.miou is not None and done.int8_miou is not None:
        same = f", {done.parity.int8:.1%} of the labels of float" if done.parity.int8 else ""
        print(f"{done.path}: INT8, calibrated on {done.calibrated_on}{same}: {_cost_of_int8(done)}")
    return 0


def _cost_of_int8(done: ExportResult) -> str:
    assert done.miou is not None
    assert done.int8_miou is not None
    if math.isnan(done.miou):
        return f"no label in {done.evaluated} images, so no mIoU"
    return (
        f"mIoU {100 * done.miou:.2f} -> {100 * done.int8_miou:.2f} "
        f"({100 * (done.int8_miou - done.miou):+.2f} points) on {done.evaluated} images"
    )


def _parity(done: ExportResult, output: str) -> str:
    parity = done.parity
    if parity.error is None or parity.agreement is None:
        return f"only its structure is checked: {done.format.title} does not run on this machine"
    close = "" if output == "labels" else f"logits within {parity.error:.1e} of their range, "
    return f"{close}{parity.agreement:.3%} of the labels as in PyTorch"


COMMAND = Command(
    export,
    run,
    example="aicsd export runs/aicsd -o model.onnx",
    notes={
        "out": ", ".join(f"{known.suffix} ({known.title})" for known in FORMATS),
        "format": ", ".join(known.name for known in FORMATS),
        "size": ", ".join(known.name for known in FORMATS if known.one_size),
    },
)
