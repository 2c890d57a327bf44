"""File of a trained network: weights, and a JSON header with all that loading needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models.input_spec import InputSpec
from aicsd.models.one_size import RESIZINGS
from aicsd.models.segmenter import Segmenter
from aicsd.tensor_files import read_tensors, write_tensors

HEADER_KEY = "aicsd"
HEADER_FORMAT = 2
FIRST_FAMILY = "deeplabv3plus"
"""The only family of files with a header of format 1."""
DECLARED = ("align_corners", "backbone", "min_batch")
"""Declarations in the header of a network that no family declares."""


def save_model(model: Segmenter, path: Path, info: Mapping[str, Any] | None = None) -> None:
    """Write weights and a JSON header that names all it takes to load them.

    Args:
        model: one without an ``origin`` is written too, and loads with
            ``load_model(path, net=module)``.
        path: safetensors file; written beside its place and renamed.
        info: further facts for the header (data, method, metrics).
    """
    origin = model.origin
    header = {
        "format": HEADER_FORMAT,
        "family": origin.family if origin is not None else None,
        "architecture": origin.options if origin is not None else None,
        "classes": list(model.classes.names),
        "palette": [list(color) for color in model.classes.palette],
        "input": model.input._asdict(),
        "info": dict(info or {}),
    }
    if origin is None:
        header |= {key: getattr(model, key) for key in DECLARED}
    write_tensors(path, _tensors(model), HEADER_KEY, json.dumps(header))


def _tensors(model: Segmenter) -> dict[str, Tensor]:
    """The network's weights, each with memory of its own, as the file requires."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model.net.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        found[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def is_model_file(path: Path) -> bool:
    """Whether ``path`` is a safetensors file with the header of :func:`save_model`."""
    return HEADER_KEY in (_metadata(path) or {})


def is_foreign_file(path: Path) -> bool:
    """Whether ``path`` is a safetensors file without that header."""
    metadata = _metadata(path)
    return metadata is not None and HEADER_KEY not in metadata


def _metadata(path: Path) -> dict[str, str] | None:
    """Header of a safetensors file; None for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return None


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header, in the form of the newest format, and weights of a file of :func:`save_model`.

    Raises:
        UserError: no such file, or a header that is missing, broken or of a later version.
    """
    state, text = read_tensors(path, HEADER_KEY)
    if text is None:
        raise UserError(
            f"{path} holds weights but no model header; only files written by aicsd load as models"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    found = header.get("format") if isinstance(header, dict) else None
    if found not in (1, HEADER_FORMAT):
        raise UserError(
            f"{path} has header format {found}; this version reads 1 and {HEADER_FORMAT}: "
            "update aicsd"
        )
    return (_from_first(header) if found == 1 else header), state


def _from_first(header: dict[str, Any]) -> dict[str, Any]:
    """A header of format 1 in the form of format 2."""
    spec = {key: header[key] for key in ("mean", "std") if key in header}
    return {**header, "family": FIRST_FAMILY, "input": spec}


def require_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse the weights of a training that diverged.

    Raises:
        UserError: naming the first weight that is not finite.
    """
    wrong = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path} holds weights that are not finite ({wrong[0]}): its training diverged; train "
            "again with a lower optimizer.lr, or with optimizer.clip"
        )


def classes_of(header: Mapping[str, Any]) -> Classes:
    """The classes in a header.

    Raises:
        KeyError, TypeError, ValueError: it holds none.
    """
    palette = tuple((int(r), int(g), int(b)) for r, g, b in header["palette"])
    if any(not 0 <= value <= 255 for color in palette for value in color):
        raise ValueError("a colour of the palette is not 0 to 255")
    return Classes(tuple(header["classes"]), palette)


def input_of(header: Mapping[str, Any]) -> InputSpec:
    """The input spec in a header.

    Raises:
        KeyError, TypeError, ValueError: it holds none.
    """
    held = dict(header["input"])
    for key in ("mean", "std"):
        held[key] = tuple(float(value) for value in held[key])
        if len(held[key]) != 3:
            raise ValueError(f"{key} must be three numbers")
    if held.get("size") is not None:
        height, width = held["size"]
        held["size"] = (int(height), int(width))
    if held.get("resizing", RESIZINGS[0]) not in RESIZINGS:
        raise ValueError(f"resizing {held['resizing']!r} is none of {', '.join(RESIZINGS)}")
    return InputSpec(**held)
