"""Augmentation-free dense contrast (Fan et al., Af-DCD, NeurIPS 2023, 2312.04168)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import (
    check_sizes,
    check_temperature,
    check_weights,
    match_valid,
    prepare_pair,
    valid_pixels,
)
from aicsd.losses._directions import directions
from aicsd.losses._ranks import shared_count
from aicsd.losses.masked_generative import MaskedGenerativeLoss, masked_generative_loss

LEAST_CHANNELS = 2
"""Least number in a group: a direction in one channel is a sign."""


def dense_contrast_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    groups: int = 16,
    pool: int = 2,
    patch: int = 4,
    temperature: float = 0.07,
    valid: Tensor | None = None,
) -> Tensor:
    """mean_mg -log e^(-|v^S_mg - v^T_mg| / T) / (the same + sum_nh e^(-|v^S_mg - v^T_nh| / T)).

    v_mg is the direction of channel group g at node m, the maximum over a square of ``pool``
    pixels; |.| the L1 norm. The negatives nh are the nodes of the same square of ``patch`` x
    ``patch`` nodes, m included, in the other groups h.

    Args:
        student: (B, D, H, W) features; the only input that gets a gradient.
        teacher: (B, D, H, W) features.
        groups: number of groups of channels, 1 or more; fewer if they would have less than two
            channels.
        pool: side of a node in pixels, 1 or more.
        patch: side of what is contrasted, in nodes, 1 or more.
        temperature: T > 0.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where nothing is valid.

    Raises:
        UserError: shapes that differ, or a bad option.
    """
    check_temperature(temperature)
    check_sizes(groups=groups, pool=pool, patch=patch)
    student, teacher = prepare_pair(student, teacher)
    where = valid_pixels(valid, student)
    is_node = F.max_pool2d(where[:, None].float(), pool, ceil_mode=True)
    is_node = _by_patch(is_node, 1, patch)[:, :, 0, 0] > 0  # P nodes
    width = max(-(-student.shape[1] // groups), LEAST_CHANNELS)
    ours, theirs = (
        _by_patch(_pooled(maps, where, pool), width, patch) for maps in (student, teacher)
    )  # P nodes groups width
    number = ours.shape[2]
    ours, theirs = (directions(v, dim=3).flatten(1, 2) for v in (ours, theirs))
    scores = torch.cdist(ours, theirs, p=1.0) / -temperature  # P, nodes groups, nodes groups
    entry = torch.arange(scores.shape[1], device=scores.device)
    group = entry % number
    unused = (group[:, None] == group) & (entry[:, None] != entry)
    counts = is_node.repeat_interleave(number, dim=1)
    scores = scores.masked_fill(unused | ~counts[:, None], float("-inf"))
    positive = scores.diagonal(dim1=1, dim2=2)
    positive = positive.masked_fill(~counts, 0.0)
    scores = scores.masked_fill(~counts[:, :, None], 0.0)  # a row without any entry
    lost = (scores.logsumexp(dim=2) - positive).masked_fill(~counts, 0.0)
    return lost.sum() / shared_count(counts.sum())


def _pooled(maps: Tensor, where: Tensor, pool: int) -> Tensor:
    """(B, D, H, W) -> maxima over the pixels inside, (B, D, h, w); 0 where there is none."""
    lowest = float("-inf")
    inside = maps.masked_fill(~where[:, None], lowest)
    inside = F.pad(inside, (0, -maps.shape[3] % pool, 0, -maps.shape[2] % pool), value=lowest)
    rows, columns = inside.shape[2] // pool, inside.shape[3] // pool
    squares = inside.reshape(*maps.shape[:2], rows, pool, columns, pool)
    # not a max pooling: its gradient is not deterministic on every GPU
    highest = squares.amax(dim=(3, 5))
    return highest.masked_fill(highest == lowest, 0.0)


def _by_patch(maps: Tensor, width: int, patch: int) -> Tensor:
    """(B, D, h, w) -> (patches, nodes, groups, width), zeros beyond the map and the channels."""
    batch, channels, height, long = maps.shape
    maps = F.pad(maps, (0, -long % patch, 0, -height % patch, 0, -channels % width))
    rows, columns = maps.shape[2] // patch, maps.shape[3] // patch
    parts = maps.reshape(batch, -1, width, rows, patch, columns, patch)
    return parts.permute(0, 3, 5, 4, 6, 1, 2).reshape(batch * rows * columns, patch**2, -1, width)


@dataclass(eq=False, repr=False)
class DenseContrastLoss(MaskedGenerativeLoss):
    """generation L_MG + contrast :func:`dense_contrast_loss`, both of one generated map.

    The map is that of :class:`aicsd.losses.MaskedGenerativeLoss`, and L_MG its loss.

    Args:
        masked: share of the student's pixels that are hidden.
        generation: weight of L_MG, 0 or above.
        contrast: weight of the contrast, 0 or above.
        groups: number of groups of channels.
        pool: side of a node in pixels.
        patch: side of what is contrasted, in nodes.
        temperature: T > 0.
    """

    generation: float = 1.0
    contrast: float = 0.1
    groups: int = 16
    pool: int = 2
    patch: int = 4
    temperature: float = 0.07

    def __post_init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__post_init__(student_channels, teacher_channels)
        check_temperature(self.temperature)
        check_weights(generation=self.generation, contrast=self.contrast)
        check_sizes(groups=self.groups, pool=self.pool, patch=self.patch)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps (B, D_S, H, W) and (B, D_T, H, W) -> scalar."""
        student, teacher = prepare_pair(student, teacher, same_channels=False)
        where = match_valid(valid, student)
        generated = self.generated(student, where)
        generation = masked_generative_loss(generated, teacher, valid=where)
        contrast = dense_contrast_loss(
            generated,
            teacher,
            groups=self.groups,
            pool=self.pool,
            patch=self.patch,
            temperature=self.temperature,
            valid=where,
        )
        return self.generation * generation + self.contrast * contrast


LOSS = DenseContrastLoss
