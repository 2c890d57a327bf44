"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from aicsd.formats.base import (
    ABOUT_KEY,
    INPUT_NAME,
    OPSET,
    About,
    Exported,
    Format,
    Graph,
    Images,
    Port,
    known,
    require,
    unreadable,
)

if TYPE_CHECKING:
    import torch

QUANTIZED = ("Conv", "Relu", "Clip", "Add", "Concat", "Resize")
"""Operators with INT8 kernels in ONNX Runtime; pooling over the whole image stays in float."""
TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float16)": "float16",
}


def to_onnx(program: torch.export.ExportedProgram, output: str) -> Any:
    """An ``onnx.ModelProto``; the output of the exporter is suppressed."""
    import torch

    require("onnxscript")
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=["labels" if output == "labels" else "logits"],
        )
    assert exported is not None
    model = exported.model_proto
    _forget_sources(model.graph)
    return model


def _forget_sources(graph: Any) -> None:
    """Drop the stack traces that the exporter adds: they name folders of this machine."""
    for held in (
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del held.metadata_props[:]
        held.doc_string = ""


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    _save(to_onnx(program, str(about["output"])), path, about)


def _save(model: Any, path: Path, about: About) -> None:
    onnx = require("onnx")
    onnx.helper.set_model_props(model, {ABOUT_KEY: json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _read(path: Path, threads: int) -> Graph:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come as exceptions, and warnings of its own are noise
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs, outputs = (
            tuple(
                Port(p.name, TYPES.get(p.type, p.type), tuple(map(known, p.shape))) for p in ports
            )
            for ports in (session.get_inputs(), session.get_outputs())
        )
        about = session.get_modelmeta().custom_metadata_map.get(ABOUT_KEY, "")
    except Exception as error:  # the library has its own errors below Exception
        raise unreadable(path, error) from error

    def run(images: Images) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = session.run([outputs[0].name], {inputs[0].name: images})[0]
        return result

    return Graph(run, about, inputs, outputs, _count(path))


def _port(port: Any) -> Port:
    return Port(port.name, TYPES.get(port.type, port.type), tuple(map(known, port.shape)))


def _count(path: Path) -> int:
    """Number of stored weights; 0 without the library onnx, which running needs not."""
    try:
        onnx = require("onnx")
        graph = onnx.load(path, load_external_data=False).graph
        held = graph.initializer
        return int(sum(_elements(t) for t in held if t.data_type in (1, 3, 10, 16)))
    except Exception:  # the count is for tables only: the runtime may still read the file
        return 0


def _elements(tensor: Any) -> int:
    count = 1
    for side in tensor.dims:
        count *= side
    return count


class _Reader:
    """Hands images to ONNX Runtime's calibration."""

    def __init__(self, images: Iterator[Images]) -> None:
        self.images = images

    def get_next(self) -> dict[str, Images] | None:
        found = next(self.images, None)
        return None if found is None else {INPUT_NAME: found}


def _quantize(exported: Exported, target: Path, images: Iterator[Images], about: About) -> None:
    onnx, tools = require("onnx"), require("onnxruntime.quantization")
    model = onnx.load(exported.path)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # for its advice on standard error
    try:
        tools.quantize_static(
            model,
            target,
            _Reader(images),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=[_normalization(model.graph), *_last_resize(model.graph)],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(level)
    _save(onnx.load(target), target, about)


def _normalization(graph: Any) -> str:
    """The first convolution, with which every exported graph begins.

    On 3 channels of full size, the INT8 kernel is the slower one.
    """
    return str(next(node.name for node in graph.node if node.op_type == "Conv"))


def _last_resize(graph: Any) -> list[str]:
    """The node that brings the logits to the image's size, which must not round them again."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers[graph.output[0].name]
    while node.op_type in ("Cast", "ArgMax", "Slice"):
        node = producers[node.input[0]]
    return [node.name] if node.op_type == "Resize" else []


FORMAT = Format(
    "onnx",
    ".onnx",
    "ONNX Runtime",
    _write,
    _read,
    libraries=("onnx", "onnxscript", "onnxruntime"),
    quantize=_quantize,
)
