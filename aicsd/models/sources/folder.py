"""Folders that ``save_pretrained`` of another library wrote: config, weights, classes.

Only JSON and safetensors files are read: nothing in such a folder is unpickled or run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from aicsd import hub
from aicsd.data.classes_file import read_classes
from aicsd.data.protocol import Classes
from aicsd.errors import UserError, one_line
from aicsd.models.model_file import is_model_file, require_finite
from aicsd.models.sources.base import named_classes, nameless_classes
from aicsd.models.state_keys import state_differences
from aicsd.runs import RunFolder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
CLASSES = "classes.txt"


def is_foreign(folder: Path) -> bool:
    """Whether ``folder`` is one of another library, and neither a run nor a file of aicsd."""
    own = RunFolder(folder).config.is_file() or is_model_file(folder / WEIGHTS)
    return (folder / CONFIG).is_file() and not own


def find_folder(reference: str) -> Path:
    """The folder at a path, or of a model ``user/name[@revision]`` on the hub.

    Raises:
        UserError: neither.
    """
    path = Path(reference)
    if path.is_dir():
        return path
    if path.exists() or reference.count("/") != 1 or reference.startswith((".", "/", "~")):
        raise UserError(f"no folder {reference}; give one, or user/name of a model on the hub")
    return hub.download_folder(f"{hub.PREFIX}{reference}")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        UserError: no such file, or something else in it.
    """
    return read_object(folder / CONFIG)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no {path.name} in {path.parent}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one safetensors file or from several with an index.

    Raises:
        UserError: none, or a file that cannot be read.
    """
    names = require_weights(folder)
    state: dict[str, Tensor] = {}
    for name in names:
        try:
            state |= load_file(folder / name)
        except Exception as error:  # whatever the damaged bytes lead it to
            reason = one_line(error)
            raise UserError(
                f"{folder / name} is not a readable safetensors file: {reason}"
            ) from error
    require_finite(folder, state)
    return state


def require_weights(folder: Path) -> list[str]:
    """Names of the safetensors files of a folder.

    Raises:
        UserError: none, or one that is not in it.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif index.is_file():
        names = sorted(set(read_object(index).get("weight_map", {}).values()))
    else:
        others = [path.name for path in folder.glob("*.bin")]
        more = f"; {others[0]} is a pickle, which could run code and is not read" if others else ""
        raise UserError(
            f"no {WEIGHTS} in {folder}{more}: save the network there with save_pretrained"
        )
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{index} names the file {name!r}, which is not in its folder")
    return names


def folder_classes(folder: Path, count: int, names: list[str] | None = None) -> Classes:
    """Classes of a network of ``count``: of ``classes.txt`` in its folder, or ``names``.

    Raises:
        UserError: a file of another number of classes.
    """
    if (folder / CLASSES).is_file():
        classes = read_classes(folder / CLASSES)
        if len(classes.names) != count:
            raise UserError(
                f"{folder / CLASSES} names {len(classes.names)} classes, and the network has "
                f"{count}"
            )
        return classes
    return nameless_classes(count) if names is None else named_classes(names)


def fill(folder: Path, net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights of a folder.

    Raises:
        UserError: missing or unknown keys, or other shapes.
    """
    different = state_differences(net.state_dict(), state)
    if different:
        raise UserError(f"{folder} does not hold the network that its {CONFIG} names: {different}")
    net.load_state_dict(dict(state), strict=False)
