"""Images of any shape for a network that takes one: stretched, padded, or cut into windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize as resize_images

from aicsd.models.maps import resize
from aicsd.types import SegOutput

Resizing = Literal["stretch", "pad", "windows"]
"""``stretch`` ignores the ratio of the sides. ``pad`` fits the longer side and fills up with black
below or at the right. ``windows`` fits the shorter side and cuts the longer one into as few windows
as cover it, evenly spread."""
RESIZINGS: tuple[Resizing, ...] = get_args(Resizing)
Run = Callable[[Tensor], SegOutput]


def run_in_one_size(
    run: Run,
    image: Tensor,
    size: tuple[int, int],
    resizing: Resizing,
    *,
    bicubic: bool = False,
    of_masks: bool = False,
) -> SegOutput:
    """The output of a network for images of another shape than it takes.

    Args:
        run: (B, 3, *size) uint8 -> output.
        image: (B, 3, H, W) uint8.
        size: (H, W) that ``run`` takes; a square for windows.
        resizing: way of resizing to that size.
        bicubic: whether they are resized bicubically, and not bilinearly.
        of_masks: as :class:`aicsd.models.Segmenter` declares it.

    Returns:
        Maps that show the whole image and nothing else. Of windows, logits are the logarithm of the
        mean class probability (or score) of all that see a pixel, features the mean. Of masks,
        logits have the size of the image.
    """
    height, width = image.shape[-2:]
    inner = size if resizing == "stretch" else _with_ratio((height, width), size, resizing)
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    sized: Tensor = image
    if inner != (height, width):
        sized = resize_images(image, list(inner), mode, antialias=True)
    if inner == size:
        output = run(sized)
    elif resizing == "windows":
        output = _windows(run, sized, size[0], of_masks)
    else:
        output = _padded(run, sized, size)
    if not of_masks:
        return output
    return output._replace(logits=_log(resize(output.logits.exp(), (height, width), False)))


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny).log()


def _with_ratio(
    image: tuple[int, int], size: tuple[int, int], resizing: Resizing
) -> tuple[int, int]:
    """(H, W) of an image that keeps the ratio of its sides, as transformers rounds it."""
    is_wide = image[1] * size[0] > image[0] * size[1]
    fits = int(is_wide == (resizing == "pad"))
    other = size[fits] * image[1 - fits] / image[fits]
    length = max(1, round(other) if resizing == "pad" else int(other))
    return (length, size[1]) if fits else (size[0], length)


def _padded(run: Run, image: Tensor, size: tuple[int, int]) -> SegOutput:
    height, width = image.shape[-2:]
    output = run(F.pad(image, (0, size[1] - width, 0, size[0] - height)))

    def cut(maps: Tensor) -> Tensor:
        rows = math.ceil(height * maps.shape[-2] / size[0])
        columns = math.ceil(width * maps.shape[-1] / size[1])
        return maps[..., :rows, :columns]

    features = {name: cut(maps) for name, maps in output.features.items()}
    return output._replace(logits=cut(output.logits), features=features)


def _windows(run: Run, image: Tensor, side: int, of_masks: bool) -> SegOutput:
    axis = -1 if image.shape[-1] > image.shape[-2] else -2
    length = image.shape[axis]
    count = math.ceil(length / side)
    starts = [number * (length - side) // (count - 1) for number in range(count)]
    outputs = [run(image.narrow(axis, start, side)) for start in starts]

    def merge(windows: list[Tensor]) -> Tensor:
        cells = windows[0].shape[axis]
        shape = list(windows[0].shape)
        shape[axis] = round(length * cells / side)
        total, seen = windows[0].new_zeros(shape), windows[0].new_zeros(shape)
        for start, window in zip(starts, windows, strict=True):
            first = min(round(start * cells / side), shape[axis] - cells)
            total.narrow(axis, first, cells).add_(window)
            seen.narrow(axis, first, cells).add_(1)
        return total / seen.clamp_min(1)

    logits = [output.logits for output in outputs]
    scores = merge([maps.exp() if of_masks else maps.softmax(dim=1) for maps in logits])
    names = outputs[0].features
    features = {name: merge([output.features[name] for output in outputs]) for name in names}
    return outputs[0]._replace(logits=_log(scores), features=features)
