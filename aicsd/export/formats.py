"""The files that a traced graph becomes."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aicsd.errors import UserError, suggest
from aicsd.models.exported import ABOUT_KEY, INPUT_NAME, openvino_core, require

OPSET = 18
"""Of ONNX; ONNX Runtime 1.14 and later read it."""
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Name -> ending of the file. OpenVINO puts the weights into a ``.bin`` beside it."""

About = Mapping[str, Any]


def format_of(path: Path, name: str | None) -> str:
    """The format ``name``, or without it the one that ``path`` ends in.

    Raises:
        UserError: an unknown name or ending, or an ending that does not belong to the format.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"unknown format {name!r}{suggest(name, FORMATS)}")
    by_suffix = {suffix: known for known, suffix in FORMATS.items()}
    found = by_suffix.get(path.suffix)
    if found is None or name not in (None, found):
        wanted = FORMATS[name] if name else ", ".join(FORMATS.values())
        raise UserError(f"out: {path} must end in {wanted} {f'for {name}' if name else ''}".strip())
    return found


def files_of(path: Path) -> list[Path]:
    """``path``, and the file that belongs to it; it comes first, for the other needs it."""
    return [path.with_suffix(".bin"), path] if path.suffix == FORMATS["openvino"] else [path]


def write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    """Write ``program`` in the format of the ending of ``path``."""
    {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}[
        format_of(path, None)
    ](program, path, about)


def require_libraries(name: str, int8: bool) -> None:
    """Refuse a format of which the libraries are not installed.

    Raises:
        UserError: naming what to install.
    """
    needed = {
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        "openvino": ["onnx", "onnxscript", "openvino", *(["nncf"] if int8 else [])],
        "torch": [],
    }
    for library in needed[name]:
        require(library)


def save_onnx(model: Any, path: Path, about: About) -> None:
    """Write an ``onnx.ModelProto``, weights included, with its description."""
    onnx = require("onnx")
    onnx.helper.set_model_props(model, {ABOUT_KEY: json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def save_openvino(model: Any, path: Path, about: About) -> None:
    """Write an ``openvino.Model`` in full precision, with its description."""
    model.set_rt_info(json.dumps(about), [ABOUT_KEY])
    require("openvino").save_model(model, path, compress_to_fp16=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    save_onnx(_to_onnx(program, str(about["output"])), path, about)


def _write_openvino(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    model = _to_onnx(program, str(about["output"]))
    save_openvino(openvino_core().read_model(model.SerializeToString()), path, about)


def _write_torch(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    torch.export.save(program, path, extra_files={f"{ABOUT_KEY}.json": json.dumps(about)})


def _to_onnx(program: torch.export.ExportedProgram, output: str) -> Any:
    """An ``onnx.ModelProto``; what the exporter has to say is not for the user."""
    require("onnxscript")
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, opset_version=OPSET,
            input_names=[INPUT_NAME], output_names=[_output_name(output)],
        )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    _forget_sources(model.graph)
    return model


def _output_name(output: str) -> str:
    return "labels" if output == "labels" else "logits"


def _forget_sources(graph: Any) -> None:
    """Drop the stack traces that the exporter adds: they name folders of this machine."""
    for held in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output,
                 *graph.initializer):  # fmt: skip
        del held.metadata_props[:]
        held.doc_string = ""
