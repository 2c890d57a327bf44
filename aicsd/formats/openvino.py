"""OpenVINO's own files: an ``.xml`` with the graph, a ``.bin`` beside it with the weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aicsd.formats.base import (
    ABOUT_KEY,
    INPUT_NAME,
    About,
    Exported,
    Format,
    Graph,
    Images,
    Port,
    require,
    unreadable,
)
from aicsd.formats.onnx import to_onnx

if TYPE_CHECKING:
    import torch

TYPES = {"u8": "uint8", "f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32"}


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


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    model = to_onnx(program, str(about["output"]))
    _save(openvino_core().read_model(model.SerializeToString()), path, about)


def _save(model: Any, path: Path, about: About) -> None:
    model.set_rt_info(json.dumps(about), [ABOUT_KEY])
    require("openvino").save_model(model, path, compress_to_fp16=False)


def _read(path: Path, threads: int) -> Graph:
    core = openvino_core()
    try:
        model = core.read_model(path)
        # processors with bfloat16 would round to it, and no longer give the exported logits
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
            },
        )
        described = model.has_rt_info([ABOUT_KEY])
        about = model.get_rt_info([ABOUT_KEY]).astype(str) if described else ""
        inputs, outputs = (
            tuple(map(_port, ports, range(len(ports)))) for ports in (model.inputs, model.outputs)
        )
        parameters = _count(model)
    except (RuntimeError, ValueError, TypeError) as error:  # ValueError: bytes that are not UTF-8
        raise unreadable(path, error) from error

    def run(images: Images) -> npt.NDArray[Any]:
        # copied: the next call writes to the same memory
        return np.array(compiled(images)[0])

    return Graph(run, about, inputs, outputs, parameters)


def _port(port: Any, position: int) -> Port:
    names = sorted(port.get_names()) or [str(position)]
    kind = port.get_element_type().get_type_name()
    shape = port.get_partial_shape()
    sides = tuple(None if side.is_dynamic else int(side.get_length()) for side in shape)
    return Port(names[0], TYPES.get(kind, kind), sides)


def _count(model: Any) -> int:
    """Number of stored weights, in whatever type they are stored."""
    held = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return sum(
        math.prod(op.get_output_shape(0))
        for op in held
        if op.get_output_element_type(0).get_type_name() in ("f32", "f16", "i8", "u8")
    )


def _quantize(exported: Exported, target: Path, images: Iterator[Images], about: About) -> None:
    nncf = require("nncf")
    nncf.set_log_level(logging.ERROR)
    model = openvino_core().read_model(exported.path)
    batches = [{INPUT_NAME: image} for image in images]
    found = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
    )
    _save(found, target, about)


FORMAT = Format(
    "openvino",
    ".xml",
    "OpenVINO",
    _write,
    _read,
    libraries=("onnx", "onnxscript", "openvino"),
    companions=(".bin",),
    quantize=_quantize,
    int8_libraries=("nncf",),
)
