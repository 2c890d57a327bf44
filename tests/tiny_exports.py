"""Exported files of one tiny network, each written once in a process."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tiny_network import CLASSES, tiny_model

from aicsd.data.protocol import Sample, SegDataset
from aicsd.exporting import Output, Parity, export_model
from aicsd.formats import Format

SIZE = (96, 128)
"""(H, W) of the files that take images of one size."""
_PLACE = TemporaryDirectory()


class Photos(SegDataset):
    """Six images of another size than ``SIZE`` to calibrate on."""

    def __init__(self) -> None:
        self.classes, self.names = CLASSES, [f"{number}" for number in range(6)]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (80, 112, 3), np.uint8)
        return Sample(image, np.zeros((80, 112), np.uint8))


def require_libraries(known: Format, int8: bool = False) -> None:
    """Skip where what a format needs is not installed."""
    for library in (*known.libraries, *(known.int8_libraries if int8 else ())):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{known.title}: needs {library} of aicsd[{known.extra}]")


def exported(known: Format, output: Output = "logits", int8: bool = False) -> tuple[Path, Parity]:
    """The file of ``tiny_model()``, and how well it agreed with PyTorch."""
    return _exported(known, output, int8)


@cache
def _exported(known: Format, output: Output, int8: bool) -> tuple[Path, Parity]:
    require_libraries(known, int8)
    path = Path(_PLACE.name) / f"{output}{'-int8' if int8 else ''}{known.suffix}"
    calibration, size = Photos() if int8 else None, SIZE if known.one_size else None
    return path, export_model(tiny_model(), path, output, calibration, size)
