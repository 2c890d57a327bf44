"""Pixel-wise distillation of the logits with more weight on borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aicsd.losses._checks import check_not_negative, check_sizes, check_temperature, prepare_pair
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count
from aicsd.losses.boundary_kd import class_divergence, label_borders
from aicsd.types import IGNORE_INDEX


def boundary_weighted_kd_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    boost: float = 4.0,
    temperature: float = 1.0,
    radius: int = 1,
    ignore_index: int = IGNORE_INDEX,
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 sum_m w_m KL(p_T || p_S)_m / sum_m w_m, w = 1 + ``boost`` on borders and 1 elsewhere.

    A pixel is on a border as in :func:`boundary_kd_loss`.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        boost: additional weight of a border pixel, 0 or above; 0 is :func:`pixel_kd_loss`.
        temperature: T > 0.
        radius: 1 or more.
        ignore_index: id of unlabelled pixels.
        valid: (B, H', W') bool; False at padding, which is neither summed nor counted.

    Returns:
        Unweighted scalar >= 0; 0 where the predictions agree, and where nothing is valid.

    Raises:
        UserError: shapes that differ, or a bad option.
    """
    check_temperature(temperature)
    check_not_negative(boost=boost)
    check_sizes(radius=radius)
    student, teacher = prepare_pair(student, teacher)
    _, borders, inside = label_borders(mask, teacher, radius, ignore_index, valid)
    divergence = class_divergence(student, teacher, temperature)
    weights = (1 + boost * borders.to(divergence.dtype)).masked_fill(~inside, 0.0)
    total = (weights * divergence.masked_fill(~inside, 0.0)).sum()
    return temperature**2 * total / shared_count(weights.sum())


@dataclass(eq=False, repr=False)
class BoundaryWeightedKDLoss(LossModule):
    """:func:`boundary_weighted_kd_loss` with its settings kept."""

    boost: float = 4.0
    temperature: float = 1.0
    radius: int = 1
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "probabilities"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_not_negative(boost=self.boost)
        check_sizes(radius=self.radius)

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Two (B, C, H, W) logit maps and (B, H, W) labels -> scalar."""
        return boundary_weighted_kd_loss(student, teacher, mask, valid=valid, **self.settings)


LOSS = BoundaryWeightedKDLoss
