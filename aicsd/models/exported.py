"""Models that ``aicsd export`` wrote, run by ONNX Runtime or OpenVINO as if they were networks."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.data.base import Classes, UInt8Array
from aicsd.errors import UserError
from aicsd.models.segmenter import Segmenter
from aicsd.types import SegOutput

ABOUT_KEY = "aicsd"
"""Of the JSON text in an exported file that tells classes, palette, input and output."""
ABOUT_FORMAT = 1
INPUT_NAME = "images"

Run = Callable[[UInt8Array], npt.NDArray[Any]]
"""(B, H, W, 3) uint8 RGB -> what the file was exported to give."""


def is_exported(path: Path) -> bool:
    """Whether the name of ``path`` is that of an exported model."""
    return path.suffix in _READERS


def load_exported(path: Path) -> ExportedSegmenter:
    """An exported model, on as many threads as PyTorch has, in float32 or INT8 as exported.

    Raises:
        UserError: a file that cannot be read, was not written by ``aicsd export`` or would have to
            be unpickled (``.pt2``), or a runtime that is not installed.
    """
    run, text = _READERS[path.suffix](path)
    try:
        about = json.loads(text) if text else {}
        if about.get("format") != ABOUT_FORMAT:
            raise UserError(
                f"{path} has no description of format {ABOUT_FORMAT}; only models that this "
                "version of aicsd exported can be used: export it again"
            )
        palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
        classes = Classes(tuple(about["classes"]), palette)
        return ExportedSegmenter(run, classes, str(about["output"])).eval()
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{path} has a broken description: {reason}; export it again") from error


class ExportedSegmenter(Segmenter):
    """Evaluates and predicts like the model it was exported from, without gradients or features.

    Args:
        run: the file's graph; the input is normalised inside.
        classes: names and colours, in the order of the channels.
        output: ``logits`` (B, C, H, W), ``native`` (B, C, ceil(H/4), ceil(W/4)) or ``labels``
            (B, H, W), which become logits of 1 for the label and 0 for other classes.
    """

    def __init__(self, run: Run, classes: Classes, output: str) -> None:
        super().__init__(nn.Identity(), classes)
        self.run = run
        self.output = output

    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) RGB, 0 to 255 -> logits, and no features; the file takes uint8 alone."""
        # an image resized for another scale has fractions
        pixels = image if image.dtype == torch.uint8 else image.round().to(torch.uint8)
        array = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
        result = torch.from_numpy(self.run(array)).to(image.device)
        if self.output == "labels":
            maps = F.one_hot(result.long(), len(self.classes.names))
            result = maps.permute(0, 3, 1, 2).float()
        return SegOutput(result, {})


def require(module: str) -> Any:
    """Import an optional library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"exported models need {module.split('.')[0]}: pip install 'aicsd[export]'"
        ) from error


@cache
def openvino_core() -> Any:
    """The process's only ``openvino.Core``, which lives as long as the process.

    Of two cores where the first is released before the second (OpenVINO 2026.4), the second leaves
    the thread with a signal stack that has been unmapped: the next signal, a Ctrl-C or a loader
    process that ends, kills the process.

    Raises:
        UserError: OpenVINO is not installed.
    """
    core = require("openvino").Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, whose signal stack it is
    return core


def _read_onnx(path: Path) -> tuple[Run, str]:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings of unused initialisers help nobody
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a family of its own below Exception
        raise _unreadable(path, error) from error

    def run(images: UInt8Array) -> npt.NDArray[Any]:
        (result,) = session.run(None, {INPUT_NAME: images})
        array: npt.NDArray[Any] = result
        return array

    return run, session.get_modelmeta().custom_metadata_map.get(ABOUT_KEY, "")


def _read_openvino(path: Path) -> tuple[Run, str]:
    core = openvino_core()
    try:
        model = core.read_model(path)
        # processors with bfloat16 would round to it, and no longer give the exported logits
        compiled = core.compile_model(
            model, "CPU",
            {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
             "INFERENCE_NUM_THREADS": torch.get_num_threads()},
        )  # fmt: skip
    except RuntimeError as error:
        raise _unreadable(path, error) from error

    def run(images: UInt8Array) -> npt.NDArray[Any]:
        # copied: the next call writes to the same memory
        return np.array(compiled(images)[0])

    known = model.has_rt_info([ABOUT_KEY])
    return run, model.get_rt_info([ABOUT_KEY]).astype(str) if known else ""


def _refuse_pickle(path: Path) -> tuple[Run, str]:
    raise UserError(
        f"{path}: reading a .pt2 file can execute code in it; torch.export.load does if you trust "
        "it, and aicsd reads .onnx and .xml"
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a readable exported model: {reason}")


_READERS = {".onnx": _read_onnx, ".xml": _read_openvino, ".pt2": _refuse_pickle}
