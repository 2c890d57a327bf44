"""Core ML: Apple's runtime. Models are converted anywhere and run on macOS and iOS alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aicsd.errors import UserError
from aicsd.formats.base import (
    ABOUT_KEY,
    INPUT_NAME,
    About,
    Format,
    Graph,
    Images,
    quiet,
    require,
    unreadable,
)

if TYPE_CHECKING:
    import torch


def _on_photos(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The graph on what Core ML hands over for an image: (1, 3, H, W) float, RGB, 0 to 255."""
    import torch

    traced = program.module(check_guards=False)
    asserts = torch.ops.aten._assert_tensor_metadata.default  # assertions on the traced type, uint8
    for node in traced.graph.find_nodes(op="call_function", target=asserts):
        traced.graph.erase_node(node)
    traced.recompile()

    class Photo(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.traced = traced

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.traced(images.permute(0, 2, 3, 1))
            return result

    height, width = _size(program)
    with torch.no_grad():
        exported = torch.export.export(Photo(), (torch.zeros(1, 3, height, width),))
        decomposed: torch.export.ExportedProgram = exported.run_decompositions({})
    return decomposed


def _size(program: torch.export.ExportedProgram) -> tuple[int, int]:
    assert program.example_inputs is not None
    (images,), _ = program.example_inputs
    return images.shape[1], images.shape[2]


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    with quiet():
        tools = require("coremltools", "mobile")
        height, width = _size(program)
        model = tools.convert(
            _on_photos(program),
            convert_to="mlprogram",
            minimum_deployment_target=tools.target.iOS16,
            inputs=[
                tools.ImageType(
                    INPUT_NAME, (1, 3, height, width), color_layout=tools.colorlayout.RGB
                )
            ],
            outputs=[tools.TensorType("labels" if about["output"] == "labels" else "logits")],
            compute_precision=tools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.user_defined_metadata[ABOUT_KEY] = json.dumps(about)
        model.save(str(path))


def _read(path: Path, _: int) -> Graph:
    if not _runs():
        raise UserError(
            f"{path}: Core ML models run on macOS only; export the run as .onnx to use it here"
        )
    with quiet():
        tools = require("coremltools", "mobile")
        try:
            model = tools.models.MLModel(str(path))
        except Exception as error:  # coremltools names no family
            raise unreadable(path, error) from error
    description = model.get_spec().description
    about = model.user_defined_metadata.get(ABOUT_KEY, "")
    output = description.output[0].name

    def run(images: Images) -> npt.NDArray[Any]:
        photo = require("PIL.Image").fromarray(images[0])
        found: npt.NDArray[Any] = model.predict({description.input[0].name: photo})[output]
        return found.astype(np.uint8) if output == "labels" else found

    return Graph(run, about, (), (), 0)


def _runs() -> bool:
    return sys.platform == "darwin"


def _check_structure(path: Path, about: About) -> None:
    """Compare the ports of a model with its description, where it cannot be run."""
    with quiet():
        model = require("coremltools", "mobile").models.MLModel(str(path), skip_model_load=True)
    description = model.get_spec().description
    (image,), (result,) = description.input, description.output
    height, width = about["size"]
    found = (image.type.imageType.height, image.type.imageType.width)
    shape = tuple(result.type.multiArrayType.shape)
    whole = {"labels": (1, height, width), "logits": (1, len(about["classes"]), height, width)}
    if found != (height, width) or shape != whole.get(about["output"], shape):
        raise UserError(
            f"the Core ML model takes {found} and gives {shape}, unlike its description; nothing "
            "was written"
        )


FORMAT = Format(
    "coreml",
    ".mlpackage",
    "Core ML",
    _write,
    _read,
    libraries=("coremltools",),
    extra="mobile",
    one_size=True,
    folder=True,
    runs=_runs,
    checked=_check_structure,
    int8_note="Core ML measures the ranges of activations on macOS alone",
)
