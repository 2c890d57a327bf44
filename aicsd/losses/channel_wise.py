"""Channel-wise distillation (Shu et al., CWD, ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import check_temperature, match_valid, prepare_pair
from aicsd.losses._module import LossModule


def channel_wise_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, valid: Tensor | None = None
) -> Tensor:
    """T^2 / (B C) sum_bc KL(phi^T_bc || phi^S_bc), phi_bc = softmax over the pixels of z_bc / T.

    On logits, phi_bc is the intra-class distribution that :func:`icsd_loss` compares in pairs: here
    each one is compared with its own of the teacher. (The released code takes the logarithm of a
    softmax, which is -inf where that underflows, counts padding, and divides by the student's
    channels before its 1x1 convolution; C here are those that are compared.)

    Args:
        student: (B, C, H, W) logits or features; the only input that gets a gradient.
        teacher: (B, C, H, W).
        temperature: T > 0.
        valid: (B, H', W') bool; padding (False) has probability 0, and an image without any other
            pixel counts as 0.

    Returns:
        Unweighted scalar >= 0; 0 where the distributions agree.

    Raises:
        UserError: shapes that differ, or a bad temperature.
    """
    check_temperature(temperature)
    student, teacher = prepare_pair(student, teacher)
    valid = match_valid(valid, student)
    pair = [maps.flatten(2) / temperature for maps in (student, teacher)]
    if valid is not None:
        outside = ~valid.flatten(1)[:, None]
        # an image without any pixel keeps all: 0 / 0 is not a distribution
        outside = outside & ~outside.all(dim=2, keepdim=True)
        pair = [scores.masked_fill(outside, float("-inf")) for scores in pair]
    log_student, log_teacher = (scores.log_softmax(dim=2) for scores in pair)
    if valid is not None:
        log_student = log_student.masked_fill(outside, 0.0)
    divergence = F.kl_div(log_student, log_teacher.exp(), reduction="none").sum(dim=2)  # B C
    if valid is not None:
        divergence = divergence * valid.flatten(1).any(dim=1, keepdim=True)
    return temperature**2 * divergence.mean()


@dataclass(eq=False, repr=False)
class ChannelWiseLoss(LossModule):
    """:func:`channel_wise_loss` with its settings kept."""

    temperature: float = 4.0

    needs: ClassVar = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) maps -> scalar."""
        return channel_wise_loss(student, teacher, valid=valid, **self.settings)


LOSS = ChannelWiseLoss
