"""Exchange formats: how to write, read and quantise their files."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aicsd import extras
from aicsd.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

ABOUT_KEY = "aicsd"
"""Key of the JSON text in a file that describes classes, palette, input and output."""
INPUT_NAME = "images"
OPSET = 18
"""ONNX operator set; ONNX Runtime 1.14 and later read it."""

About = Mapping[str, Any]
Images = npt.NDArray[Any]
Run = Callable[[Images], npt.NDArray[Any]]
"""A batch as the file declares it -> the file's first output. Errors are those of the runtime."""


class Port(NamedTuple):
    """An input or an output of a graph."""

    name: str
    dtype: str
    """NumPy type, such as ``uint8`` or ``float32``."""
    shape: tuple[int | None, ...]
    """None where the file takes any size."""


class Graph(NamedTuple):
    """A file, ready to run."""

    run: Run
    about: str
    """JSON text of the description; empty in a file of another tool."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    """Number of stored weights; 0 if the runtime gives no number."""


class Exported(NamedTuple):
    """A traced graph, and the file in full precision that it became."""

    program: torch.export.ExportedProgram
    path: Path


@dataclass(frozen=True)
class Format:
    """One exchange format.

    Args:
        name: ``--format``.
        suffix: ending of its files, with the dot.
        title: name of the runtime, for tables and messages.
        write: writes a traced graph with its description. The graph takes ``images``
            (B, H, W, 3) uint8.
        read: opens a file on a number of threads; refuses what is broken or would execute code.
        libraries: modules that writing and reading need.
        extra: extra of aicsd that installs them.
        companions: endings of the files that belong to one, written before it.
        quantize: writes the INT8 version of an exported graph: target, calibration images
            (1, H, W, 3), description. None where the format has none.
        int8_libraries: further modules that this needs.
        one_size: whether a file takes one image of one size.
        folder: whether a "file" is a folder.
        runs: whether files can be run on this machine.
        trusted: opens a file written by this process, where ``read`` refuses all.
        checked: compares a file that cannot be run here with its description by its structure.
        int8_note: why there is no ``quantize``.
    """

    name: str
    suffix: str
    title: str
    write: Callable[[torch.export.ExportedProgram, Path, About], None]
    read: Callable[[Path, int], Graph]
    libraries: tuple[str, ...] = ()
    extra: str = "export"
    companions: tuple[str, ...] = ()
    quantize: Callable[[Exported, Path, Iterator[Images], About], None] | None = None
    int8_libraries: tuple[str, ...] = ()
    one_size: bool = False
    folder: bool = False
    runs: Callable[[], bool] = lambda: True
    trusted: Callable[[Path, int], Graph] | None = None
    checked: Callable[[Path, About], None] | None = None
    int8_note: str = ""

    def files(self, path: Path) -> list[Path]:
        """``path`` and what belongs to it; the latter first, since ``path`` needs it."""
        return [*(path.with_suffix(suffix) for suffix in self.companions), path]

    def bytes(self, path: Path) -> int:
        """Bytes on the disk of ``path`` and what belongs to it."""
        parts = (part for file in self.files(path) for part in (file, *file.rglob("*")))
        return sum(part.stat().st_size for part in parts if part.is_file())

    def require_libraries(self, int8: bool = False) -> None:
        """Import what writing needs.

        Raises:
            UserError: naming what to install.
        """
        with quiet():
            for library in (*self.libraries, *(self.int8_libraries if int8 else ())):
                require(library, self.extra)


def require(module: str, extra: str = "export") -> Any:
    """Import a library of a format.

    Raises:
        UserError: it is not installed, or cannot be loaded.
    """
    return extras.require(module, extra, f"exported models need {module.split('.')[0]}")


@contextlib.contextmanager
def _silent_descriptor() -> Iterator[None]:
    """Suppress what code below Python writes to standard error."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what a converter prints, logs and warns of on its way."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            _silent_descriptor(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def unreadable(path: Path, error: Exception | str) -> UserError:
    """The one line for a file that a runtime refuses."""
    return UserError(f"{path} is not a readable exported model: {one_line(error)}")


def known(dimension: Any) -> int | None:
    """A fixed number of elements, or None."""
    return int(dimension) if isinstance(dimension, int | np.integer) and dimension > 0 else None
