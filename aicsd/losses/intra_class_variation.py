"""Intra-class feature variation (Wang et al., IFVD, ECCV 2020)."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aicsd.losses._checks import match_mask, match_valid, prepare_pair, without_autocast
from aicsd.losses._directions import directions
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count
from aicsd.types import IGNORE_INDEX


def intra_class_variation_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    num_classes: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    valid: Tensor | None = None,
) -> Tensor:
    """mean_m (s^S_m - s^T_m)^2, s_m = cos(f_m, mean of f over the class of m in its image).

    Args:
        student: (B, D_S, H, W) features; the only input that gets a gradient.
        teacher: (B, D_T, H, W) features; the numbers of channels may differ.
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        num_classes: C; None counts up to the largest id, for which a GPU has to be waited for.
        ignore_index: id of unlabelled pixels, which take no part.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar in [0, 4]; 0 where the cosines agree, and where nothing is labelled.

    Raises:
        UserError: shapes that do not belong together.
    """
    student, teacher = prepare_pair(student, teacher, same_channels=False)
    labels = match_mask(mask, student).long().flatten(1)
    where = match_valid(valid, student)
    counted = labels != ignore_index
    if where is not None:
        counted = counted & where.flatten(1)
    if num_classes is None:
        num_classes = 1 + int(labels.masked_fill(~counted, 0).max())
    classes = torch.arange(num_classes, device=labels.device)[:, None]
    of_class = ((labels[:, None] == classes) & counted[:, None]).to(student.dtype)  # B C N
    ours, theirs = (_cosines_with_centres(maps, of_class) for maps in (student, teacher))
    return (ours - theirs).square().sum() / shared_count(of_class.sum())


def _cosines_with_centres(maps: Tensor, of_class: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, N), 0 at pixels of no class."""
    flat = maps.flatten(2)
    with without_autocast(flat):
        centres = of_class @ flat.transpose(1, 2)  # sums: a direction has no length
        centres = directions(centres, dim=2)
        cosines = centres @ directions(flat, dim=1)  # B C N
    return (cosines * of_class).sum(dim=1)


@dataclass(eq=False, repr=False)
class IntraClassVariationLoss(LossModule):
    """:func:`intra_class_variation_loss` with its settings kept."""

    num_classes: InitVar[int]
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "features"
    same_channels: ClassVar = False

    def __post_init__(self, num_classes: int) -> None:
        super().__post_init__()
        self.classes = num_classes

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Two maps (B, D, H, W) and (B, H, W) labels -> scalar."""
        return intra_class_variation_loss(
            student, teacher, mask, num_classes=self.classes, valid=valid, **self.settings
        )


LOSS = IntraClassVariationLoss
