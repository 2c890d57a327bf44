"""Safetensors files with a checksum over all that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aicsd.errors import UserError, one_line
from aicsd.files import atomic_path

CHECKSUM = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, text: str) -> None:
    """Write tensors and a text; the file is either whole or absent.

    Args:
        path: path of the file.
        tensors: contiguous, on the CPU, none sharing memory with another.
        key: key of the text in the header.
        text: kept in the header of the file.

    Raises:
        UserError: the file cannot be written.
    """
    metadata = {key: text, CHECKSUM: _checksum(tensors, text)}
    with atomic_path(path, durable=True) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, for one
            raise UserError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], str | None]:
    """Tensors and text of a file; the text is None if the file has none under ``key``.

    Files with a text but without a checksum are of older versions.

    Raises:
        UserError: no safetensors file, or not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever the damaged bytes lead it to
        reason = one_line(error)
        raise UserError(f"{path} is not a readable safetensors file: {reason}") from error
    text = metadata.pop(key, None)
    if text is not None:
        wanted = metadata.pop(CHECKSUM, None)
        if metadata or wanted not in (None, _checksum(tensors, text)):
            raise UserError(f"{path} is damaged: its checksum is wrong")
    return tensors, text


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = sha256(f"{len(text)} {text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty one has no bytes, and a stride that no view takes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
