"""INT8 by static post-training quantisation, calibrated on training images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aicsd.data.base import SegDataset, UInt8Array
from aicsd.export.formats import About, save_onnx, save_openvino
from aicsd.models.exported import INPUT_NAME, openvino_core, require

QUANTIZED = ("Conv", "Relu", "Clip", "Add", "Concat", "Resize")
"""ONNX operators with INT8 kernels that meet in a DeepLabV3+; its image pooling stays in float."""


def quantize(source: Path, images: SegDataset, target: Path, about: About) -> None:
    """Write the INT8 version of an exported ONNX or OpenVINO file.

    Weights are rounded per channel, activations per tensor, to the range they have on ``images``,
    which are taken one by one at their own size.
    """
    {".onnx": _quantize_onnx, ".xml": _quantize_openvino}[source.suffix](
        source, images, target, about
    )


class _Reader:
    """Hands ``images`` to ONNX Runtime's calibration."""

    def __init__(self, images: SegDataset) -> None:
        self.batches = _batches(images)

    def get_next(self) -> dict[str, UInt8Array] | None:
        return next(self.batches, None)


def _batches(images: SegDataset) -> Iterator[dict[str, UInt8Array]]:
    for index in range(len(images)):
        yield {INPUT_NAME: images.read(index).image[None]}


def _quantize_onnx(source: Path, images: SegDataset, target: Path, about: About) -> None:
    onnx, tools = require("onnx"), require("onnxruntime.quantization")
    model = onnx.load(source)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises on standard error, through the root logger
    try:
        tools.quantize_static(
            model, target, _Reader(images),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=[_normalization(model.graph), *_last_resize(model.graph)],
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )  # fmt: skip
    finally:
        logging.root.setLevel(level)
    save_onnx(onnx.load(target), target, about)


def _normalization(graph: Any) -> str:
    """The first convolution: on 3 channels of full size, the INT8 kernel is the slower one."""
    return str(next(node.name for node in graph.node if node.op_type == "Conv"))


def _last_resize(graph: Any) -> list[str]:
    """The node that brings the logits to the image's size, which must not round them again."""
    producers = {name: node for node in graph.node for name in node.output}
    node = producers[graph.output[0].name]
    while node.op_type in ("Cast", "ArgMax"):
        node = producers[node.input[0]]
    return [node.name] if node.op_type == "Resize" else []


def _quantize_openvino(source: Path, images: SegDataset, target: Path, about: About) -> None:
    nncf = require("nncf")
    nncf.set_log_level(logging.ERROR)
    model = openvino_core().read_model(source)
    found = nncf.quantize(
        model,
        nncf.Dataset(_batches(images)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
    )
    save_openvino(found, target, about)
