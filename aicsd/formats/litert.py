"""LiteRT (once TensorFlow Lite): a runtime for phones, browsers and microcontrollers."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    quiet,
    require,
    unreadable,
)

if TYPE_CHECKING:
    import torch

SIGNATURE = "serving_default"
FLOAT32, INT8 = 0, 9
"""LiteRT's numbers of element types."""


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    with quiet():
        converter = require("litert_torch", "litert")
        assert program.example_inputs is not None
        (images,), _ = program.example_inputs
        module = _named(_without_expand(program.module()))
        converter.convert(module, sample_kwargs={INPUT_NAME: images}).export(str(path))
    _describe(path, about)


def _named(program: torch.fx.GraphModule) -> torch.nn.Module:
    """A graph whose input has a name, which a program's own module does not take."""
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = [program]  # hidden from eval(), which such a module refuses

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.program[0](images)
            return result

    return Named().eval()


def _without_expand(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Expanded maps as sums with zeros: LiteRT's BROADCAST_TO refuses maps in its own layout."""
    import torch

    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.expand.default):
        source, sizes = node.args[:2]
        shape = [
            held if side == -1 else side
            for side, held in zip(sizes, source.meta["val"].shape, strict=True)
        ]
        with graph.inserting_before(node):
            zeros = graph.call_function(torch.ops.aten.zeros.default, (shape,))
            node.replace_all_uses_with(
                graph.call_function(torch.ops.aten.add.Tensor, (source, zeros))
            )
        graph.erase_node(node)
    module.recompile()
    return module


def _schema() -> Any:
    return require("ai_edge_litert.schema_py_generated", "litert")


def _describe(path: Path, about: About) -> None:
    """Add the description to the metadata of a file."""
    schema, flatbuffers = _schema(), require("flatbuffers", "litert")
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for held in model.buffers:
        if held.offset > 1:  # behind the flatbuffer, which packing again would leave out
            held.data = np.frombuffer(content, np.uint8, held.size, held.offset)
            held.offset = held.size = 0
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(about).encode(), np.uint8)
    entry.name, entry.buffer = ABOUT_KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _read(path: Path, threads: int) -> Graph:
    with quiet():
        library = require("ai_edge_litert.interpreter", "litert")
        try:
            interpreter = library.Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
            about, parameters = _stored(path.read_bytes())
            inputs, outputs = (
                tuple(map(_port, ports))
                for ports in (interpreter.get_input_details(), interpreter.get_output_details())
            )
            index, result = (
                ports[0]["index"]
                for ports in (interpreter.get_input_details(), interpreter.get_output_details())
            )
        except (RuntimeError, ValueError, TypeError, IndexError, OSError) as error:
            raise unreadable(path, error) from error

    def run(images: Images) -> npt.NDArray[Any]:
        interpreter.set_tensor(index, images)
        interpreter.invoke()
        found: npt.NDArray[Any] = interpreter.get_tensor(result)
        return found

    return Graph(run, about, inputs, outputs, parameters)


def _stored(content: bytes) -> tuple[str, int]:
    """The description, and the number of weights."""
    model = _schema().Model.GetRootAs(content, 0)
    about, parameters = "", 0
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == ABOUT_KEY.encode():
            about = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().decode()
    graph = model.Subgraphs(0)
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() in (FLOAT32, INT8) and (buffer.DataLength() or buffer.Size()):
            parameters += int(np.prod(tensor.ShapeAsNumpy()))
    return about, parameters


def _port(details: dict[str, Any]) -> Port:
    return Port(details["name"], np.dtype(details["dtype"]).name, tuple(map(int, details["shape"])))


def _quantize(exported: Exported, target: Path, images: Iterator[Images], about: About) -> None:
    with quiet():
        tools = require("ai_edge_quantizer", "litert")
        quantizer = tools.Quantizer(str(exported.path))
        quantizer.load_quantization_recipe(tools.recipe.static_wi8_ai8())
        # logits come out in float, as from every other file
        quantizer.update_quantization_recipe(".*", "OUTPUT", algorithm_key="no_quantize")
        data = {SIGNATURE: [{INPUT_NAME: image} for image in images]}
        result = quantizer.quantize(quantizer.calibrate(data))
        result.export_model(str(target))
    _describe(target, about)


FORMAT = Format(
    "litert",
    ".tflite",
    "LiteRT",
    _write,
    _read,
    libraries=("litert_torch", "ai_edge_litert"),
    extra="litert",
    quantize=_quantize,
    int8_libraries=("ai_edge_quantizer",),
    one_size=True,
)
