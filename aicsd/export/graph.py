"""What is exported: from pixels to logits or labels, and the text that describes it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from aicsd.formats.base import INPUT_NAME
from aicsd.models import Segmenter, as_output, resize
from aicsd.models.exported import ABOUT_FORMAT

Output = Literal["logits", "native", "labels"]

SMALLEST_SIDE = 33
"""Of an image in pixels: so that no map, at stride 32 at most, is a single pixel wide."""
TRACED = (2, 192, 256, 3)
"""The input that is traced; sizes of 0 or 1 would be taken for constants."""


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
        self.net, self.align_corners = model.net, model.align_corners
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB -> logits (B, C, H, W), native ones, or (B, H, W) uint8 labels."""
        pixels = images.permute(0, 3, 1, 2).float()
        logits = as_output(self.net(self.normalize(pixels))).logits
        if self.output == "native":
            return logits
        size = (images.shape[1], images.shape[2])
        logits = resize(logits, size, self.align_corners)
        return logits.argmax(dim=1).to(torch.uint8) if self.output == "labels" else logits


def _normalization(model: Segmenter) -> nn.Conv2d:
    """Pixels 0 to 255 -> (pixel / 255 - mean) / std, as a 1x1 convolution.

    INT8 runtimes keep channels last, where subtracting and dividing by three numbers took a third
    of the time of a whole student.
    """
    std = torch.tensor(model.input.std, dtype=torch.float64)
    layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
    layer.weight.copy_(torch.diag(1 / (255 * std)).view(3, 3, 1, 1))
    assert layer.bias is not None
    layer.bias.copy_(-torch.tensor(model.input.mean, dtype=torch.float64) / std)
    return layer


def trace(graph: ExportGraph) -> torch.export.ExportedProgram:
    """The graph for any number of images of any size from ``SMALLEST_SIDE`` on."""
    sizes = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("height", min=SMALLEST_SIDE),
        2: torch.export.Dim("width", min=SMALLEST_SIDE),
    }
    images = torch.zeros(TRACED, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            graph, (images,), dynamic_shapes=(sizes,),
            # that two maps differ in size holds from SMALLEST_SIDE on, but is not proven by itself
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip


def describe(model: Segmenter, output: Output, int8: bool) -> dict[str, Any]:
    """What a user of the file has to know; JSON in the file's metadata."""
    results = {
        "logits": "logits (B, C, H, W) float32; the class id of a pixel is their arg max over C",
        "native": "logits (B, C, ceil(H/4), ceil(W/4)) float32; resize them bilinearly with "
        "aligned corners, then take the arg max over C",
        "labels": "class ids (B, H, W) uint8",
    }
    return {
        "format": ABOUT_FORMAT,
        "input": f"{INPUT_NAME} (B, H, W, 3) uint8, RGB, sides of {SMALLEST_SIDE} pixels or more",
        "preprocessing": "none: the graph divides by 255, subtracts mean and divides by std",
        "mean": list(model.input.mean),
        "std": list(model.input.std),
        "output": output,
        "align_corners": model.align_corners,
        "result": results[output],
        "classes": list(model.classes.names),
        "palette": [list(color) for color in model.classes.palette],
        "int8": int8,
        "architecture": model.origin.options if model.origin is not None else None,
    }
