"""Pixel-wise distillation of standardised logits (Sun et al., CVPR 2024, arXiv 2403.01427)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aicsd.losses._checks import check_temperature
from aicsd.losses._module import LossModule
from aicsd.losses.pixel_kd import pixel_kd_loss


def standardized_kd_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, valid: Tensor | None = None
) -> Tensor:
    """:func:`pixel_kd_loss` of (z - mean_c z) / std_c z of every pixel in place of z.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        temperature: T > 0; 2 as published.
        valid: (B, H', W') bool; False at padding, which is neither summed nor counted.

    Returns:
        Unweighted scalar >= 0; 0 where the standardised logits agree.

    Raises:
        UserError: shapes that differ, or a temperature that is not positive.
    """
    return pixel_kd_loss(student, teacher, temperature=temperature, standardize=True, valid=valid)


@dataclass(eq=False, repr=False)
class StandardizedKDLoss(LossModule):
    """:func:`standardized_kd_loss` with its settings kept."""

    temperature: float = 2.0

    needs: ClassVar = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return standardized_kd_loss(student, teacher, valid=valid, **self.settings)


LOSS = StandardizedKDLoss
