"""Cross-image relations of pixels in a batch (Yang et al., CIRKD, CVPR 2022, arXiv 2204.06986)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import (
    check_sizes,
    check_temperature,
    prepare_pair,
    valid_pixels,
    without_autocast,
)
from aicsd.losses._directions import pixel_directions
from aicsd.losses._module import LossModule


def cross_image_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    patch: int = 2,
    valid: Tensor | None = None,
) -> Tensor:
    """mean_mj KL(s^T_mj || s^S_mj), s_mj = softmax over the nodes n of image j of f_m . f_n / T.

    f are the unit vectors along the channels at the nodes: means over squares of ``patch`` pixels.
    Each node m of the batch (of this process) is compared with those of each of its images j, its
    own included. The numbers of channels may differ.

    Args:
        student: (B, D_S, H, W) features; the only input that gets a gradient.
        teacher: (B, D_T, H, W) features.
        temperature: T > 0.
        patch: side of a node in pixels; 1 compares all pixels. Memory grows with
            (B H W / patch^2)^2.
        valid: (B, H', W') bool; a node is the mean over its pixels inside the image, and one
            without any takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where the similarities agree, and where nothing is valid.

    Raises:
        UserError: another batch or size, or a bad option.
    """
    check_temperature(temperature)
    check_sizes(patch=patch)
    student, teacher = prepare_pair(student, teacher, same_channels=False)
    where = valid_pixels(valid, student)
    is_node = F.max_pool2d(where[:, None].float(), patch, ceil_mode=True).flatten(1) > 0  # B n
    has_nodes = is_node.any(dim=1)
    outside = ~is_node & has_nodes[:, None]  # an image without nodes keeps all, and counts as 0
    log_student, log_teacher = (
        _log_similarity(_nodes(maps, where, patch), outside, temperature)
        for maps in (student, teacher)
    )
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    weights = is_node.flatten()[:, None] & has_nodes
    by_pair = divergence.sum(dim=2).masked_fill(~weights, 0.0)  # (B n, B)
    return by_pair.sum() / weights.sum().clamp_min(1)


def _nodes(maps: Tensor, where: Tensor, patch: int) -> Tensor:
    """(B, D, H, W) -> (B, n, D), of length 1."""
    inside = maps.masked_fill(~where[:, None], 0.0)
    # this divides by all pixels of a square, not by those valid: a direction has no length
    means = F.avg_pool2d(inside, patch, ceil_mode=True)
    return pixel_directions(means)


def _log_similarity(nodes: Tensor, outside: Tensor, temperature: float) -> Tensor:
    """(B, n, D) -> (B n, B, n), 0 at nodes outside."""
    flat = nodes.flatten(0, 1)
    with without_autocast(flat):
        cosines = flat @ flat.T
    scores = (cosines / temperature).view(-1, *outside.shape).masked_fill(outside, float("-inf"))
    return scores.log_softmax(dim=2).masked_fill(outside, 0.0)


@dataclass(eq=False, repr=False)
class CrossImageLoss(LossModule):
    """:func:`cross_image_loss` with its settings kept."""

    temperature: float = 0.1
    patch: int = 2

    needs: ClassVar = "features"
    same_channels: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_sizes(patch=self.patch)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two maps (B, D, H, W) -> scalar."""
        return cross_image_loss(student, teacher, valid=valid, **self.settings)


LOSS = CrossImageLoss
