"""A trained model as a file for ONNX Runtime, OpenVINO or ``torch.export``, in float or INT8."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from aicsd.data.base import SegDataset
from aicsd.errors import UserError
from aicsd.export.check import Parity, compare
from aicsd.export.formats import FORMATS, OPSET, files_of, format_of, require_libraries, write
from aicsd.export.graph import ExportGraph, Output, describe, trace
from aicsd.export.quantize import quantize
from aicsd.files import atomic_path
from aicsd.models import Segmenter
from aicsd.models.exported import ExportedSegmenter

__all__ = [
    "FORMATS",
    "OPSET",
    "Output",
    "Parity",
    "check_target",
    "files_of",
    "export_model",
    "require_classes",
]


def check_target(out: Path, format_name: str | None = None, int8: bool = False) -> str:
    """The format that ``out`` will have.

    Raises:
        UserError: the ending does not belong to it, a file is there already, INT8 is not offered
            for it, or a library for it is not installed.
    """
    name = format_of(out, format_name)
    if int8 and name == "torch":
        raise UserError("int8 is for the formats onnx and openvino, not for torch")
    for path in files_of(out):
        if path.exists():
            raise UserError(f"out: {path} exists; choose another file or remove it")
    require_libraries(name, int8)
    return name


def require_classes(model: Segmenter, dataset: SegDataset) -> None:
    """Refuse to calibrate or measure on images of other classes.

    Raises:
        UserError: naming both.
    """
    if model.classes.names != dataset.classes.names:
        raise UserError(
            f"the model was trained on the classes {list(model.classes.names)} but the dataset has "
            f"{list(dataset.classes.names)}; calibrate on the data that it was trained on"
        )


def export_model(
    model: Segmenter,
    out: Path,
    output: Output = "logits",
    calibration: SegDataset | None = None,
) -> Parity:
    """Write ``model`` to ``out``, which ends in ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (torch).

    The file takes images (B, H, W, 3) uint8 RGB, any number of any size, and holds the
    normalisation, the class names and the palette. It appears at ``out`` once it is checked.

    Args:
        model: in evaluation mode.
        out: a file that does not exist.
        output: ``logits`` (B, C, H, W), ``native`` logits (B, C, ceil(H/4), ceil(W/4)), or
            ``labels`` (B, H, W) uint8.
        calibration: training images; with them the file is INT8.

    Returns:
        How well the file, before it was made INT8, agrees with PyTorch.

    Raises:
        UserError: what :func:`check_target` refuses, images of other classes, a model that is
            exported already, or a file that does not compute what PyTorch does.
    """
    check_target(out, int8=calibration is not None)
    if isinstance(model, ExportedSegmenter):
        raise UserError("the model is exported already; export the run that it came from")
    if calibration is not None:
        require_classes(model, calibration)
    graph = ExportGraph(model, output).eval()
    with ExitStack() as stack:
        # before the work, so that a folder that cannot be written to is told at once
        targets = [stack.enter_context(atomic_path(path)) for path in reversed(files_of(out))]
        folder = Path(stack.enter_context(TemporaryDirectory()))
        built = folder / f"float{out.suffix}"
        write(trace(graph), built, describe(model, output, int8=False))
        parity = compare(graph, built)
        if calibration is not None:
            rounded = folder / f"int8{out.suffix}"
            quantize(built, calibration, rounded, describe(model, output, int8=True))
            built = rounded
        for source, target in zip(reversed(files_of(built)), targets, strict=True):
            shutil.copyfile(source, target)
    return parity
