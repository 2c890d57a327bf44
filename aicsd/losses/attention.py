"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928), the method AD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import match_valid, prepare_pair
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    numerics: Numerics = "described",
    valid: Tensor | None = None,
) -> Tensor:
    """Squared distance of the two attention maps: L_AD = 1/B sum_b ||a^S_b - a^T_b||^2.

    a_b = Q_b / ||Q_b||, Q_b = mean over the channels of f_b^2 as one vector of the H W pixels, and
    ||.|| the L2 norm over them. (The paper writes the norm; its code, like this, squares it. That
    code also divides by H W, by which its weights are larger: the sum does not change with the
    size of the map.)

    Args:
        student: (B, D, H, W) features, or logits (B, C, H, W); the only input that gets a gradient.
        teacher: (B, D', H, W); the number of channels may differ.
        numerics: ``released`` is the released code instead, whose norm runs over the *rows of each
            column*: a = Q / ||Q||, with ||.|| over H at fixed b and x, and the mean of
            (a^S - a^T)^2 over all B H W pixels. ``valid`` is ignored, since that code never
            masks padding.
        valid: (B, H', W') bool; at padding (False) Q is 0 in both maps, so that it takes part
            neither in the norm nor in the distance.

    Returns:
        Unweighted scalar >= 0; 0 where the maps agree. At most 2 with ``described``.

    Raises:
        UserError: another batch or size, or unknown numerics.
    """
    check_numerics(numerics)
    student, teacher = prepare_pair(student, teacher, same_channels=False)
    energies = [maps.square().mean(dim=1) for maps in (student, teacher)]  # B H W
    if numerics == "released":
        ours, target = (F.normalize(energy, dim=1) for energy in energies)
        return (ours - target).square().mean()
    where = match_valid(valid, student)
    if where is not None:
        energies = [energy.masked_fill(~where, 0.0) for energy in energies]
    ours, target = (F.normalize(energy.flatten(1), dim=1) for energy in energies)
    return (ours - target).square().sum() / student.shape[0]


@dataclass(eq=False, repr=False)
class AttentionLoss(LossModule):
    """:func:`attention_loss` with its settings kept."""

    numerics: Numerics = "described"

    needs: ClassVar = "features"
    same_channels: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numerics(self.numerics)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two maps (B, D, H, W), or logits (B, C, H, W) -> scalar."""
        return attention_loss(student, teacher, valid=valid, **self.settings)


LOSS = AttentionLoss
