"""ExecuTorch: PyTorch's runtime for phones and other devices, on XNNPACK's kernels for CPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from aicsd.formats.base import (
    ABOUT_KEY,
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

DTYPES = {0: "uint8", 3: "int32", 4: "int64", 6: "float32"}
"""PyTorch's numbers of element types."""


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    with quiet():
        exir = require("executorch.exir", "mobile")
        xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "mobile")
        edge = exir.to_edge_transform_and_lower(
            program,
            partitioner=[xnnpack.XnnpackPartitioner()],
            # a method without inputs that returns the description
            constant_methods={ABOUT_KEY: json.dumps(about)},
        )
        path.write_bytes(edge.to_executorch().buffer)


def _read(path: Path, threads: int) -> Graph:
    with quiet():
        runtime = require("executorch.runtime", "mobile")
        bindings = require("executorch.extension.pybindings.portable_lib", "mobile")
        bindings._unsafe_reset_threadpool(threads)
        try:
            program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            method = program.load_method("forward")
            described = ABOUT_KEY in program.method_names
            about = program.load_method(ABOUT_KEY).execute([])[0] if described else ""
            meta = method.metadata
            inputs = [meta.input_tensor_meta(n) for n in range(meta.num_inputs())]
            outputs = [meta.output_tensor_meta(n) for n in range(meta.num_outputs())]
        except RuntimeError as error:
            raise unreadable(path, error) from error

    import torch

    def run(images: Images) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = method.execute([torch.from_numpy(images)])[0].numpy()
        return result

    return Graph(run, str(about), tuple(map(_port, inputs)), tuple(map(_port, outputs)), 0)


def _port(info: Any) -> Port:
    return Port("", DTYPES.get(info.dtype(), str(info.dtype())), tuple(info.sizes()))


def _quantize(exported: Exported, target: Path, images: Iterator[Images], about: About) -> None:
    import torch

    with quiet():
        tools = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "mobile")
        steps = require("torchao.quantization.pt2e.quantize_pt2e", "mobile")
        quantizer = tools.XNNPACKQuantizer()
        quantizer.set_global(tools.get_symmetric_quantization_config(is_per_channel=True))
        module = steps.prepare_pt2e(exported.program.module(), quantizer)
        with torch.no_grad():
            for image in images:
                module(torch.from_numpy(image))
            module = steps.convert_pt2e(module)
            assert exported.program.example_inputs is not None
            arguments, _ = exported.program.example_inputs
            program = torch.export.export(module, arguments)
    _write(program, target, about)


FORMAT = Format(
    "executorch",
    ".pte",
    "ExecuTorch",
    _write,
    _read,
    libraries=("executorch",),
    extra="mobile",
    quantize=_quantize,
    int8_libraries=("torchao",),
    one_size=True,
)
