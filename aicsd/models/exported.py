"""Exported models, run by the library that their format is for as if they were networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.formats import find_format
from aicsd.formats.base import Graph, Run, one_line, unreadable
from aicsd.models.segmenter import Segmenter
from aicsd.types import SegOutput

ABOUT_FORMAT = 1


def is_exported(path: Path) -> bool:
    """Whether the name of ``path`` is that of an exported model."""
    return find_format(path) is not None


def load_exported(path: Path, threads: int | None = None) -> ExportedSegmenter:
    """An exported model in float32 or INT8, as exported.

    Args:
        path: of a format of :data:`aicsd.formats.FORMATS`.
        threads: of the runtime; as many as PyTorch has without it.

    Raises:
        UserError: a file that cannot be read, was not written by ``aicsd export`` or would have to
            be unpickled (``.pt2``), or a runtime that is not installed.
    """
    known = find_format(path)
    assert known is not None, "see is_exported"
    graph = known.read(path, threads or torch.get_num_threads())
    about = _description(path, graph.about)
    try:
        palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
        classes = Classes(tuple(about["classes"]), palette)
        output = str(about["output"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(path, error) from error
    _check_ports(path, graph, output, len(classes.names))
    aligned = bool(about.get("align_corners", True))
    run = _guarded(path, graph.run)
    return ExportedSegmenter(run, classes, output, graph.parameters, aligned).eval()


def _description(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text) if text else {}
    except (json.JSONDecodeError, RecursionError) as error:
        raise _broken(path, error) from error
    if not isinstance(about, dict):
        raise _broken(path, TypeError(f"it is a {type(about).__name__}"))
    if about.get("format") != ABOUT_FORMAT:
        raise UserError(
            f"{path} has no description of format {ABOUT_FORMAT}; only models that this "
            "version of aicsd exported can be used: export it again"
        )
    return about


def _broken(path: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__} {one_line(error)}"
    return UserError(f"{path} has a broken description: {reason}; export it again")


def _check_ports(path: Path, graph: Graph, output: str, classes: int) -> None:
    """Refuse a graph that is not what its description says, before it is run."""
    if not graph.inputs:
        return
    (found, *others), (result, *more) = graph.inputs, graph.outputs
    dtypes = {"labels": "uint8", "logits": "float32", "native": "float32"}
    if output not in dtypes:
        raise _broken(path, ValueError(f"output {output!r}"))
    sides = len(result.shape)
    wrong = (
        f"{len(others) + 1} inputs" if others else
        f"{len(more) + 1} outputs" if more else
        f"input {found.dtype} {found.shape}"
        if (found.dtype, len(found.shape), found.shape[-1:]) != ("uint8", 4, (3,)) else
        f"output {result.dtype} {result.shape}"
        if (result.dtype, sides) != (dtypes[output], 3 if output == "labels" else 4) else
        f"{result.shape[1]} channels for {classes} classes"
        if sides == 4 and result.shape[1] not in (None, classes) else ""
    )  # fmt: skip
    if wrong:
        raise unreadable(path, f"it has {wrong}, unlike its description ({output})")


def _guarded(path: Path, run: Run) -> Run:
    def guarded(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            return run(images)
        except (RuntimeError, ValueError, TypeError, MemoryError, OSError) as error:
            raise _not_run(path, images, error) from error
        except Exception as error:  # runtimes have families of their own
            raise _not_run(path, images, error) from error

    return guarded


def _not_run(path: Path, images: npt.NDArray[Any], error: Exception) -> UserError:
    count, height, width = images.shape[:3]
    return UserError(
        f"{path} cannot be run on {count} images of {width}x{height}: {one_line(error)}"
    )


class ExportedSegmenter(Segmenter):
    """Evaluates and predicts like the model it was exported from, without gradients or features.

    Args:
        run: the file's graph; the input is normalised inside.
        classes: names and colours, in the order of the channels.
        output: ``logits`` (B, C, H, W), ``native`` logits at the network's own stride, or
            ``labels`` (B, H, W), which become logits of 1 for the label and 0 for other classes.
        parameters: number of weights in the file; 0 where it is not known.
        align_corners: as the exported network declares it.
    """

    def __init__(
        self,
        run: Run,
        classes: Classes,
        output: str,
        parameters: int = 0,
        align_corners: bool = True,
    ) -> None:
        super().__init__(nn.Identity(), classes, align_corners=align_corners)
        self.run = run
        self.output = output
        self.parameters_stored = parameters

    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) RGB, 0 to 255 -> logits, and no features; the file takes uint8 alone."""
        # an image resized for another scale has fractions
        pixels = image if image.dtype == torch.uint8 else image.round().to(torch.uint8)
        array = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
        result = torch.from_numpy(self.run(array)).to(image.device)
        if self.output == "labels":
            maps = F.one_hot(result.long(), len(self.classes.names))
            result = maps.permute(0, 3, 1, 2).float()
        return SegOutput(result, {}, self.align_corners)

    def num_parameters(self) -> int:
        """Number of weights in the file; 0 where the runtime does not say."""
        return self.parameters_stored
