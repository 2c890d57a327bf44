"""Named maps of a network: channels, strides, resizing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.errors import UserError, suggest
from aicsd.types import LOGITS, SegOutput

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""Maps that every family names alike: of the backbone, from stride 4 to the deepest."""


class MapInfo(NamedTuple):
    """Channels and stride (image side over map side, rounded) of a map."""

    channels: int
    stride: int


def resize(maps: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), bilinear.

    Args:
        maps: maps of one network.
        size: rows and columns.
        align_corners: as that network declares it (:class:`aicsd.models.Segmenter`).
    """
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)


def class_ids(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """(B, C, h, w) -> (B, *size) int64: the class of the largest logit, resized to ``size``."""
    # image by image, so that the resized maps of one are in memory; and max, since PyTorch's argmax
    # takes several times as long for the same ids
    ids = [
        resize(image, size, align_corners).max(dim=1).indices for image in torch.split(logits, 1)
    ]
    return torch.cat(ids)


def sample_aligned(
    maps: Tensor, size: tuple[int, int], cells: tuple[int, int], align_corners: bool
) -> Tensor:
    """Values of maps at pixels spread evenly from the first one of an image to its last.

    Args:
        maps: (B, D, h, w) of one network.
        size: (H, W) of the image.
        cells: rows and columns of the result.
        align_corners: as that network declares it.

    Returns:
        (B, D, *cells), bilinear: maps whose corners are aligned, whatever the network does.
    """
    if align_corners:
        return resize(maps, cells, align_corners=True)
    rows, columns = (
        # the centre of a pixel in grid_sample's coordinates, where -1 and 1 are the outer edges
        (2 * torch.linspace(0, side - 1, count, dtype=torch.float64) + 1) / side - 1
        for side, count in zip(size, cells, strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(maps).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def as_output(output: Any) -> SegOutput:
    """Output of common segmentation networks -> ``SegOutput``."""
    if isinstance(output, SegOutput):
        return output
    if isinstance(output, Tensor):
        return SegOutput(output, {})
    if isinstance(output, dict) and "out" in output:
        return SegOutput(output["out"], {})
    if hasattr(output, "logits"):
        return SegOutput(output.logits, {})
    raise UserError(
        f"the network returned {type(output).__name__}; expected logits (B, C, H, W), a dict with "
        "'out', or an object with 'logits'"
    )


def map_named(output: SegOutput, name: str, owner: str) -> Tensor:
    """``logits``, or the feature ``name``; one that the network of ``owner`` lacks is refused."""
    maps = {LOGITS: output.logits, **output.features}
    if name not in maps:
        raise UserError(f"{owner} has no feature {name!r}{suggest(name, maps)}")
    return maps[name]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; at the end every module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
