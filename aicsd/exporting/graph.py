"""Graph that is exported, from pixels to logits or labels, and its description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.exporting.pooling import any_size_pooling
from aicsd.formats.base import INPUT_NAME
from aicsd.models import Segmenter, as_output, resize
from aicsd.models.exported import ABOUT_FORMAT
from aicsd.types import LOGITS, Output

SMALLEST_EXPORTED_SIDE = 33
"""Side of an image in pixels, at least: so that no map at stride 32 is a single pixel wide."""
TRACED = (192, 256)
"""(H, W) that is traced, roughly; sizes of 0 or 1 would be taken for constants."""


class ExportGraph(nn.Module):
    """Normalisation, network and what follows it.

    Args:
        model: in evaluation mode.
        output: ``logits`` resized to the image, ``native`` logits at the network's own resolution,
            or ``labels``, the arg max of the resized logits.
    """

    def __init__(self, model: Segmenter, output: Output = "logits") -> None:
        super().__init__()
        self.normalize = _normalization(model)
        # a network may have a form of its own to be traced
        self.net = getattr(model.net, "for_export", lambda: model.net)()
        self.output, self.align_corners = output, model.align_corners

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB -> logits (B, C, H, W), native ones, or (B, H, W) uint8 labels."""
        pixels = images.permute(0, 3, 1, 2).float()
        logits = as_output(self.net(self.normalize(pixels))).logits
        if self.output == "native":
            return logits
        logits = resize(logits, (images.shape[1], images.shape[2]), self.align_corners)
        return logits.argmax(dim=1).to(torch.uint8) if self.output == "labels" else logits


def _normalization(model: Segmenter) -> nn.Conv2d:
    """Pixels 0 to 255 -> (pixel * scale - mean) / std, as a 1x1 convolution.

    INT8 runtimes keep channels last, where subtracting and dividing by three numbers took a third
    of the time of a whole student.
    """
    spec = model.input
    std = torch.tensor(spec.std, dtype=torch.float64)
    weight, bias = torch.diag(spec.scale / std), -torch.tensor(spec.mean, dtype=torch.float64) / std
    layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
    layer.weight.copy_((weight.flip(0) if spec.bgr else weight).view(3, 3, 1, 1))
    assert layer.bias is not None
    layer.bias.copy_(bias.flip(0) if spec.bgr else bias)
    return layer


def smallest_side(model: Segmenter) -> int:
    """Side in pixels that an image must have at least for maps of more than one cell.

    A network with internal maps that it does not declare has ``smallest_exported_side``.
    """
    largest_stride = max(info.stride for info in model.maps.values())
    declared = int(getattr(model.net, "smallest_exported_side", 0))
    return model.input.fit((max(SMALLEST_EXPORTED_SIDE, largest_stride + 1, declared),) * 2)[0]


def file_size(model: Segmenter, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """(H, W) of the only images that a file takes, or None for a file for any size.

    Raises:
        UserError: a size that the network does not take, or none where it needs one.
    """
    size = size or model.input.size
    if size is None and getattr(model.net, "exports_one_size", False):
        raise UserError(
            f"{model.name} is exported for images of one size alone: give --size WIDTHxHEIGHT, the "
            "size of the images where the model will run"
        )
    if size is not None and (min(size) < smallest_side(model) or model.input.fit(size) != size):
        height, width = size
        fixed = model.input.size
        rule = (
            f"{fixed[1]}x{fixed[0]} alone"
            if fixed
            else f"sides of {smallest_side(model)} pixels or more, multiples of "
            f"{model.input.multiple}"
        )
        raise UserError(f"size is {width}x{height}; the network takes {rule}")
    return size


def trace(
    graph: ExportGraph, model: Segmenter, size: tuple[int, int] | None = None
) -> torch.export.ExportedProgram:
    """The graph for any number of images of any size that the network takes.

    Args:
        graph: graph of ``model``.
        model: model of the graph, for the sizes that it takes.
        size: (H, W), for one image of this size alone.
    """
    if size is not None:
        with torch.no_grad():
            return torch.export.export(graph, (torch.zeros((1, *size, 3), dtype=torch.uint8),))
    multiple = model.input.multiple
    smallest = smallest_side(model) // multiple
    sides = [torch.export.Dim(name, min=smallest) for name in ("height", "width")]
    sizes = {0: torch.export.Dim("batch", min=1)}
    sizes |= {axis: multiple * side for axis, side in enumerate(sides, start=1)}
    images = torch.zeros((2, *model.input.fit(TRACED), 3), dtype=torch.uint8)
    with torch.no_grad(), any_size_pooling():
        return torch.export.export(
            graph,
            (images,),
            dynamic_shapes=(sizes,),
            # that two maps differ in size holds from smallest_side on, but is not provable
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def describe(
    model: Segmenter, output: Output, int8: bool, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Description of the file for its users; JSON in the file's metadata."""
    stride, corners = model.maps[LOGITS].stride, "with" if model.align_corners else "without"
    spec = model.input
    results = {
        "logits": "logits (B, C, H, W) float32; the class id of a pixel is their arg max over C",
        "native": f"logits (B, C, H / {stride}, W / {stride}) float32, sides rounded up; resize "
        f"them bilinearly {corners} aligned corners, then take the arg max over C",
        "labels": "class ids (B, H, W) uint8",
    }
    sides = f"sides of {smallest_side(model)} pixels or more"
    if spec.multiple > 1:
        sides += f", multiples of {spec.multiple}: pad others with the color in padding"
    images = f"(1, {size[0]}, {size[1]}, 3)" if size else "(B, H, W, 3)"
    about: dict[str, Any] = {
        "format": ABOUT_FORMAT,
        "input": f"{INPUT_NAME} {images} uint8, RGB{'' if size else f', {sides}'}",
        "preprocessing": "none: the graph scales pixels, subtracts mean and divides by std",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "output": output,
        "align_corners": model.align_corners,
        "result": results[output],
        "classes": list(model.classes.names),
        "palette": [list(color) for color in model.classes.palette],
        "int8": int8,
        "parameters": model.num_parameters(),
        "architecture": model.origin.options if model.origin is not None else None,
    }
    if size is not None:
        about["size"] = list(size)
    if spec.multiple > 1 and size is None:
        about |= {"multiple": spec.multiple, "padding": list(spec.color)}
    if model.of_masks:
        about["of_masks"] = True
    if spec.window:
        about["window"] = spec.window
    if size is not None and size == spec.size:
        about |= {"resizing": spec.resizing, "bicubic": spec.bicubic}
    return about
