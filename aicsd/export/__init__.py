"""A trained model as a file for ONNX Runtime, OpenVINO or ``torch.export``, in float or INT8."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from aicsd.data.protocol import SegDataset
from aicsd.errors import UserError
from aicsd.export.check import Parity, compare
from aicsd.export.graph import ExportGraph, Output, describe, trace
from aicsd.files import atomic_path
from aicsd.formats import FORMATS, Format, format_of
from aicsd.formats.base import Exported, Images
from aicsd.models import Segmenter
from aicsd.models.exported import ExportedSegmenter

__all__ = [
    "FORMATS",
    "Output",
    "Parity",
    "check_target",
    "export_model",
    "require_classes",
]


def check_target(out: Path, format_name: str | None = None, int8: bool = False) -> Format:
    """The format that ``out`` will have.

    Raises:
        UserError: the ending does not belong to it, a file is there already, INT8 is not offered
            for it, or a library for it is not installed.
    """
    found = format_of(out, format_name)
    if int8 and found.quantize is None:
        offered = [known.name for known in FORMATS if known.quantize is not None]
        words = f"{', '.join(offered[:-1])} and {offered[-1]}"
        raise UserError(f"int8 is for the formats {words}, not for {found.name}: {found.int8_note}")
    for path in found.files(out):
        if path.exists():
            raise UserError(f"out: {path} exists; choose another file or remove it")
    found.require_libraries(int8)
    return found


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
    written = check_target(out, int8=calibration is not None)
    if isinstance(model, ExportedSegmenter):
        raise UserError("the model is exported already; export the run that it came from")
    if calibration is not None:
        require_classes(model, calibration)
    graph = ExportGraph(model, output).eval()
    with ExitStack() as stack:
        # before the work, so that a folder that cannot be written to is told at once
        targets = [stack.enter_context(atomic_path(path)) for path in written.files(out)[::-1]]
        folder = Path(stack.enter_context(TemporaryDirectory()))
        built = folder / f"float{out.suffix}"
        program = trace(graph)
        written.write(program, built, describe(model, output, int8=False))
        parity = compare(graph, built, written)
        if calibration is not None:
            assert written.quantize is not None
            exported, built = Exported(program, built), folder / f"int8{out.suffix}"
            about = describe(model, output, int8=True)
            written.quantize(exported, built, _images(calibration), about)
        for source, target in zip(written.files(built)[::-1], targets, strict=True):
            shutil.copyfile(source, target)
    return parity


def _images(dataset: SegDataset) -> Iterator[Images]:
    """(1, H, W, 3): one by one, at their own size."""
    for index in range(len(dataset)):
        yield dataset.read(index).image[None]
