"""``torch.export``: a program that PyTorch runs without the code of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from aicsd.errors import UserError
from aicsd.formats.base import ABOUT_KEY, About, Format, Graph, Images

if TYPE_CHECKING:
    import torch


def _write(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    import torch

    torch.export.save(program, path, extra_files={f"{ABOUT_KEY}.json": json.dumps(about)})


def _refuse(path: Path, _: int) -> Graph:
    raise UserError(
        f"{path}: reading a .pt2 file can execute code in it; torch.export.load does if you trust "
        "it, and aicsd reads the other formats"
    )


def _trusted(path: Path, _: int) -> Graph:
    import torch

    program = torch.export.load(path)
    module = program.module()

    def run(images: Images) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = module(torch.from_numpy(images)).numpy()
        return result

    count = sum(tensor.numel() for tensor in program.state_dict.values())
    return Graph(run, "", (), (), count)


FORMAT = Format(
    "torch",
    ".pt2",
    "torch.export",
    _write,
    _refuse,
    trusted=_trusted,
    int8_note="its programs stay in float",
)
