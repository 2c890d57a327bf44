"""Class probabilities of images; of large ones band by band, so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aicsd.models.maps import resize
from aicsd.models.views import (
    VIEWS_PER_PASS,
    InferenceConfig,
    scale_images,
    view_probabilities,
    window_starts,
)

if TYPE_CHECKING:
    from aicsd.models.segmenter import Segmenter


@torch.no_grad()
def summed_probabilities(
    model: Segmenter, images: Tensor, config: InferenceConfig, batch_size: int = VIEWS_PER_PASS
) -> Tensor:
    """Sum over the scales of the class probabilities of images.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) uint8 RGB on the model's device; B is 1 where windows are cut.
        config: scales, mirrored views and windows; views of one scale are averaged.
        batch_size: views that share a forward pass.

    Returns:
        (B, C, H, W), float; over the classes they sum to the number of scales.
    """
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    for scale in config.scales:
        maps = view_probabilities(model, scale_images(images, scale), config, batch_size)
        maps = resize(maps, size, align_corners=True)  # as scale_images has it
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total


def class_probabilities(
    model: Segmenter, images: Tensor, config: InferenceConfig, batch_size: int = VIEWS_PER_PASS
) -> Tensor:
    """Mean class probabilities of images, (B, C, H, W) float: over the classes they sum to 1.

    The arguments are those of :func:`summed_probabilities`.
    """
    return summed_probabilities(model, images, config, batch_size) / len(config.scales)


def has_bands(height: int, config: InferenceConfig) -> bool:
    """Whether an image of this height is taken band by band: one scale, and higher than a window.

    Windows of a scaled image do not end on rows of the image, so that several scales need it whole.
    """
    return config.scales == (1.0,) and 0 < config.window < height


@torch.no_grad()
def probability_bands(
    model: Segmenter, image: Tensor, config: InferenceConfig, batch_size: int = VIEWS_PER_PASS
) -> Iterator[tuple[int, Tensor]]:
    """The class probabilities of an image with :func:`has_bands`, from top to bottom.

    Only the rows of one window are in memory, where the whole would take 4 C H W bytes. The number
    of windows over a pixel is that of rows of windows times that of columns, so the mean over all
    of them is the mean over rows of windows of the mean within a row.

    Args:
        model: in evaluation mode.
        image: (1, 3, H, W) uint8 RGB.
        config: with a window below H.
        batch_size: views that share a forward pass.

    Yields:
        The first row of a band and its (1, C, h, W) probabilities, those of
        :func:`class_probabilities` but for rounding.
    """
    height, rows = image.shape[-2], config.window
    tops = window_starts(height, rows, config.overlap)
    total: Tensor | None = None
    count = torch.zeros(rows, 1, device=image.device)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        maps = class_probabilities(model, image[:, :, top : top + rows], config, batch_size)
        total = maps if total is None else total + maps
        count = count + 1
        done = following - top  # no later window reaches these rows
        yield top, total[:, :, :done] / count[:done]
        total = torch.cat([total[:, :, done:], torch.zeros_like(total[:, :, :done])], dim=2)
        count = torch.cat([count[done:], torch.zeros_like(count[:done])])
