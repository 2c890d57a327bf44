"""Exported models as networks, run by the library of their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, one_line
from aicsd.formats import find_format
from aicsd.formats.base import Graph, Port, unreadable
from aicsd.models.beside import beside, read_beside
from aicsd.models.input_spec import IMAGENET, InputSpec
from aicsd.models.one_size import RESIZINGS
from aicsd.models.segmenter import Segmenter
from aicsd.types import Output

ABOUT_FORMAT = 1
RAW = InputSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1.0)
"""Input spec of a graph that normalises its input."""


class Layout(NamedTuple):
    """Layout of the tensors of a graph."""

    dtype: str
    """NumPy type of the input: ``uint8`` or ``float32``."""
    channels_last: bool
    """Whether the input is (B, H, W, 3) instead of (B, 3, H, W)."""
    labels: bool
    """Whether the output is class ids (B, H, W) instead of logits (B, C, h, w)."""
    logits_last: bool = False
    """Whether logits are (B, h, w, C)."""
    one_image: bool = False
    """Whether it takes one image at a time."""


def load_exported(
    path: Path,
    classes: Classes | None = None,
    input: InputSpec | None = None,
    align_corners: bool = False,
    threads: int | None = None,
) -> ExportedSegmenter:
    """An exported model in float32 or INT8, as exported, by aicsd or by another tool.

    A file of another tool takes RGB images (B, 3, H, W) or (B, H, W, 3), uint8 or normalised
    float32, of any size or one, and gives logits (B, C, h, w), (B, h, w, C) or class ids (B, H, W).

    Args:
        path: file in a format of :data:`aicsd.formats.FORMATS`.
        classes: for a file without a description; the file's own otherwise.
        input: for a file without a description; without it ImageNet's normalisation for float32
            and none for uint8.
        align_corners: resizing of the logits of such a file.
        threads: threads of the runtime; default: as many as PyTorch.

    Raises:
        UserError: a file that cannot be read, is not what its description says, has none and no
            ``classes`` are given, or would have to be unpickled (``.pt2``); or a runtime that is
            not installed.
    """
    known = find_format(path)
    assert known is not None, "the ending has chosen this source"
    graph = known.read(path, threads or torch.get_num_threads())
    if graph.about:
        return _described(path, graph)
    if classes is None:
        if not beside(path).exists():
            raise UserError(
                f"{path} has no description by aicsd: write {beside(path).name} beside it with its "
                "classes, and with its mean and std if they are not ImageNet's"
            )
        classes, input, align_corners = read_beside(path)
    layout, size = _guess(path, graph, len(classes.names))
    spec = input or (RAW if layout.dtype == "uint8" else IMAGENET)
    net = FileNetwork(path, graph, layout, len(classes.names))
    spec = spec._replace(size=size or spec.size)
    output = "labels" if layout.labels else "logits"
    return ExportedSegmenter(net, classes, spec, align_corners, graph.parameters, output)


def _described(path: Path, graph: Graph) -> ExportedSegmenter:
    """A file of ``aicsd export``."""
    about = _description(path, graph.about)
    try:
        palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
        classes = Classes(tuple(map(str, about["classes"])), palette)
        output, size = str(about["output"]), about.get("size")
        if output not in get_args(Output):
            raise ValueError(f"output {output!r}")
        spec = RAW._replace(
            multiple=int(about.get("multiple", 1)),
            window=int(about.get("window", 0)),
            size=None if size is None else (int(size[0]), int(size[1])),
            mean=tuple(map(float, about["padding"])) if "padding" in about else RAW.mean,
            bicubic=bool(about.get("bicubic", False)),
            resizing=about.get("resizing", "stretch"),
        )
        if spec.resizing not in RESIZINGS:
            raise ValueError(f"resizing {spec.resizing!r}")
        parameters = int(about.get("parameters", graph.parameters))
        aligned = bool(about.get("align_corners", True))
        of_masks = bool(about.get("of_masks", False)) and output != "labels"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _broken(path, error) from error
    layout = Layout("uint8", True, output == "labels", one_image=size is not None)
    net = FileNetwork(path, graph, layout, len(classes.names), spec.mean)
    return ExportedSegmenter(net, classes, spec, aligned, parameters, output, of_masks)


def _description(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _broken(path, error) from error
    if not isinstance(about, dict):
        raise _broken(path, TypeError(f"it is a {type(about).__name__}"))
    if about.get("format") != ABOUT_FORMAT:
        raise UserError(
            f"{path} has a description of format {str(about.get('format'))[:20]}; this version "
            f"reads {ABOUT_FORMAT}: export it again"
        )
    return about


def _broken(path: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__} {one_line(error)}"
    return UserError(f"{path} has a broken description: {reason}; export it again")


def _guess(path: Path, graph: Graph, classes: int) -> tuple[Layout, tuple[int, int] | None]:
    """Layout of a file of another tool, and the one (H, W) that it takes, if it is one."""
    image = _single_input(path, graph)
    if image.dtype not in ("uint8", "float32") or len(image.shape) != 4:
        raise _unfit(path, f"its input is {_words(image)}", "images (B, 3, H, W) or (B, H, W, 3)")
    last = image.shape[3] == 3 and image.shape[1] != 3
    if not last and image.shape[1] not in (3, None):
        raise _unfit(path, f"its input is {_words(image)}", "three channels")
    result = graph.outputs[0]
    labels = "int" in result.dtype and len(result.shape) == 3
    axes = [axis for axis in (1, 3) if result.shape[axis : axis + 1] == (classes,)]
    if not labels and (len(result.shape) != 4 or (not axes and None not in result.shape[1:2])):
        raise _unfit(path, f"its output is {_words(result)}", f"logits of {classes} classes")
    height, width = image.shape[1:3] if last else image.shape[2:4]
    size = None if height is None or width is None else (height, width)
    logits_last = not labels and axes == [3]
    return Layout(image.dtype, last, labels, logits_last, image.shape[0] == 1), size


def _single_input(path: Path, graph: Graph) -> Port:
    if len(graph.inputs) != 1 or not graph.outputs:
        names = ", ".join(port.name[:40] for port in graph.inputs[:4])
        raise _unfit(path, f"it has {len(graph.inputs)} inputs ({names})", "one, the image")
    return graph.inputs[0]


def _words(port: Port) -> str:
    return f"{port.dtype} ({', '.join('?' if side is None else str(side) for side in port.shape)})"


def _unfit(path: Path, found: str, wanted: str) -> UserError:
    return UserError(f"{path} is not a model that aicsd can run: {found}; wanted {wanted}")


class FileNetwork(nn.Module):
    """The graph of a file as a network without gradients.

    Args:
        path: for messages.
        graph: read from it.
        layout: layout of its tensors; a graph that declares another one is refused.
        classes: C.
        offset: value that was subtracted from the pixels, so that padding has that colour.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        layout: Layout,
        classes: int,
        offset: tuple[float, ...] = RAW.mean,
    ) -> None:
        super().__init__()
        self.path, self.run, self.layout, self.classes = path, graph.run, layout, classes
        self.offset = offset
        if graph.inputs:
            image, sides = _single_input(path, graph), 3 if layout.labels else 4
            channels = image.shape[3 if layout.channels_last else 1 :][:1]
            fits = image.dtype == layout.dtype and channels in ((3,), (None,))
            if not fits or len(image.shape) != 4:
                raise unreadable(path, f"its input is {_words(image)}, unlike its description")
            result = graph.outputs[0]
            if len(result.shape) != sides or ("int" in result.dtype) != layout.labels:
                raise unreadable(path, f"its output is {_words(result)}, unlike its description")

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) as the graph takes them -> logits (B, C, h, w); 0 or 1 from labels."""
        if any(self.offset):
            pixels = pixels + pixels.new_tensor(self.offset).view(1, 3, 1, 1)
        if self.layout.dtype == "uint8" and pixels.dtype != torch.uint8:
            # an image resized for another scale has fractions
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        if self.layout.channels_last:
            pixels = pixels.permute(0, 2, 3, 1)
        images = np.ascontiguousarray(pixels.cpu().numpy())
        parts = np.split(images, len(images)) if self.layout.one_image else [images]
        found = np.concatenate([self._guarded(part) for part in parts])
        return self._logits(torch.from_numpy(found)).to(pixels.device)

    def _logits(self, found: Tensor) -> Tensor:
        if self.layout.labels and found.ndim == 3:
            ids = found.long()
            if not 0 <= int(ids.min()) <= int(ids.max()) < self.classes:
                raise unreadable(self.path, f"it gives class ids beyond its {self.classes} classes")
            return F.one_hot(ids, self.classes).permute(0, 3, 1, 2).float()
        maps = found.permute(0, 3, 1, 2) if self.layout.logits_last and found.ndim == 4 else found
        if maps.ndim != 4 or maps.shape[1] != self.classes or self.layout.labels:
            raise unreadable(
                self.path, f"it gives {tuple(found.shape)}, not maps of {self.classes} classes"
            )
        return maps.float()

    def _guarded(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            return self.run(images)
        except Exception as error:  # runtimes have families of their own
            raise UserError(
                f"{self.path} cannot be run on images {images.shape}: {one_line(error)}"
            ) from error


class ExportedSegmenter(Segmenter):
    """Evaluates and predicts like the model it was exported from, without gradients or features.

    Args:
        net: the file's graph.
        classes: names and colours, in the order of the channels.
        input: input spec of the graph.
        align_corners: as the exported network declares it.
        parameters: number of weights; 0 where it is not known.
        output: output of the graph: ``logits``, ``native`` ones or ``labels``.
        of_masks: as the exported network declares it.
    """

    net: FileNetwork

    def __init__(
        self,
        net: FileNetwork,
        classes: Classes,
        input: InputSpec,
        align_corners: bool,
        parameters: int = 0,
        output: str = "logits",
        of_masks: bool = False,
    ) -> None:
        super().__init__(net, classes, input, align_corners=align_corners, of_masks=of_masks)
        self._parameters_stored = parameters
        self.output = output
        self.eval()

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB of 0 to 255 -> the input of the graph."""
        same = RAW._replace(size=self.input.size, window=self.input.window)
        same = same._replace(bicubic=self.input.bicubic, resizing=self.input.resizing)
        return image if self.input == same else super().normalize(image)

    def num_parameters(self) -> int:
        """Number of weights; 0 where it is not known."""
        return self._parameters_stored
