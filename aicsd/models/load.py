"""Load a trained network by its reference; no other module resolves references."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, did_you_mean, one_line
from aicsd.files import at_home
from aicsd.models.model_file import (
    DECLARED,
    classes_of,
    input_of,
    is_model_file,
    read_model_file,
    require_finite,
)
from aicsd.models.segmenter import Segmenter
from aicsd.models.sources import LIBRARIES, SOURCES, Source, find_source
from aicsd.models.sources.folder import CONFIG, is_foreign, read_config
from aicsd.models.state_keys import state_differences
from aicsd.runs import MODEL_FILE, RunFolder


def load_model(reference: str | Path, net: nn.Module | None = None) -> Segmenter:
    """A trained network in evaluation mode.

    Args:
        reference: run folder, safetensors file of aicsd, an exported file such as ``.onnx``, a
            checkpoint (``.pth.tar``, ``.pth``, ``.pt``) of the released AICSD code, which is taken
            to have output stride 16 (see :func:`import_checkpoint`), or ``PREFIX:NAME`` of a source
            of :data:`aicsd.models.sources.SOURCES`, such as ``hf:user/name`` or
            ``torchvision:deeplabv3_resnet101``.
        net: module that gets the weights of a file which :func:`save_model` wrote for a network
            that aicsd did not build.

    Raises:
        UserError: nothing there, of none of these kinds, or broken.
    """
    named = _named(reference)
    if named is not None:
        source, name = named
        return source.load(at_home(name))
    path = Path(at_home(reference))
    if is_foreign(path):
        return load_foreign(path)
    # an exported model may be a folder too
    is_run = path.is_dir() and _source_of(path) is None
    file = RunFolder(path).model if is_run else path
    if not file.exists():
        if path.is_dir():
            raise UserError(f"no model at {path}; the run has not finished: no {MODEL_FILE} in it")
        hint = _hint(str(reference)) or "; give a run folder, a model file or hf:user/name"
        raise UserError(f"no model at {path}{hint}")
    return load_file(file, net)


def load_foreign(folder: Path) -> Segmenter:
    """The network in a folder that another library wrote with ``save_pretrained``.

    Raises:
        UserError: an unknown library, or an unsupported network of it.
    """
    config = read_config(folder)
    library = next((library for library in LIBRARIES if library.wrote(config)), None)
    if library is None:
        known = " or ".join(library.PREFIX for library in LIBRARIES)
        raise UserError(f"{folder / CONFIG} describes no network of {known}")
    return library.load_folder(folder)


def is_reference(reference: str | Path) -> bool:
    """Whether ``reference`` is ``PREFIX:NAME`` of a known source, and no path."""
    return _named(reference) is not None


def is_there(reference: str | Path) -> bool:
    """Whether :func:`load_model` finds something: the name of a source, or a file."""
    path = Path(at_home(reference))
    is_model = _source_of(path) is not None and path.exists()
    is_folder = is_foreign(path) or RunFolder(path).model.is_file()
    return is_reference(reference) or is_model or path.is_file() or is_folder


def _named(reference: str | Path) -> tuple[Source, str] | None:
    prefix, colon, name = str(reference).partition(":")
    source = find_source(prefix) if colon else None
    return None if source is None else (source, name)


def _hint(reference: str) -> str:
    prefix, colon, _ = reference.partition(":")
    known = [f"{source.PREFIX}:" for source in SOURCES if not source.SUFFIXES]
    if not colon or len(prefix) == 1:  # a drive of Windows
        return ""
    return did_you_mean(f"{prefix}:", known)


def _source_of(path: Path) -> Source | None:
    """The source of files with the ending of ``path``."""
    suffix = path.suffix.lower()
    return next((source for source in SOURCES if suffix in source.SUFFIXES), None)


def load_file(file: Path, net: nn.Module | None = None) -> Segmenter:
    """The network in one file, of any kind that :func:`load_model` takes."""
    source = _source_of(file)
    if source is not None and not is_model_file(file):
        return source.load(str(file))
    header, state = read_model_file(file)
    return assemble(file, header, state, net)


def assemble(
    file: Path, header: Mapping[str, Any], state: Mapping[str, Tensor], net: nn.Module | None = None
) -> Segmenter:
    """A network in evaluation mode from the header and the weights of its file.

    Raises:
        UserError: a header that names no network, another one, or none that aicsd can build.
    """
    require_finite(file, state)
    try:
        if header["family"] is None:
            return _fill(file, header, state, net)
        source = find_source(header["family"])
        if source is None:
            raise UserError(
                f"{file} holds a network of the unknown family {header['family']!r}: update aicsd"
            )
        # loading a file must not download another, even if its header names one
        options = {**header["architecture"]}
        if "weights" in options:
            options["weights"] = "none"
        classes = classes_of(header)
        expected = _expected(header["family"], json.dumps(options), classes)
        # before the network takes any memory
        if different := state_differences(expected, state, counters=True):
            raise ValueError(different)
        model = source.build(options, classes)
        model.net.load_state_dict(state)
        return model.with_input(input_of(header)).eval()
    except UserError as error:
        if str(error).startswith(str(file)):
            raise
        raise _lies(file, error) from error
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _lies(file, error) from error


def _lies(file: Path, error: Exception) -> UserError:
    reason = one_line(error, 300)
    return UserError(f"{file} does not hold the model that its header names: {reason}")


def _fill(
    file: Path, header: Mapping[str, Any], state: Mapping[str, Tensor], net: nn.Module | None
) -> Segmenter:
    """The weights of a network that aicsd did not build, in the module of its owner."""
    if net is None:
        raise UserError(
            f"{file} holds the weights of a network of your own; give the module that they belong "
            "to: aicsd.load_model(path, net=module)"
        )
    net.load_state_dict(state)
    declared = {key: header[key] for key in DECLARED}
    return Segmenter(net, classes_of(header), input_of(header), **declared).eval()


@lru_cache(maxsize=32)
def _expected(family: str, options: str, classes: Classes) -> dict[str, Tensor]:
    """Names and shapes of the weights of a network; a report loads many of one kind."""
    source = find_source(family)
    assert source is not None
    with torch.device("meta"):
        state: dict[str, Tensor] = source.build(json.loads(options), classes).net.state_dict()
    return state
