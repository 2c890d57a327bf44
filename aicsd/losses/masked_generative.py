"""Masked generative distillation (Yang et al., MGD, ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.losses._checks import match_valid, prepare_pair, without_autocast
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count


def masked_generative_loss(
    student: Tensor, teacher: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """sum_m ||G(A f_S * kept)_m - f_T,m||^2 / sum_m ||f_T,m||^2 over the pixels of the batch.

    1 is the value of a generator that predicts 0 everywhere, whatever the length of the features.

    Args:
        student: (B, D, H, W), what the generator has made of the student's features.
        teacher: (B, D, H, W) features.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where both agree, and where nothing is valid.

    Raises:
        UserError: shapes that differ.
    """
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student)
    sums = [maps.square().sum(dim=1) for maps in (student - teacher, teacher)]
    if where is not None:
        sums = [maps.masked_fill(~where, 0.0) for maps in sums]
    error, energy = (maps.sum() for maps in sums)
    return error / shared_count(energy, torch.finfo(energy.dtype).tiny)


@dataclass(eq=False, repr=False)
class MaskedGenerativeLoss(LossModule):
    """:func:`masked_generative_loss` of a student's map of which most pixels are hidden.

    A 1x1 convolution takes the student's map to the teacher's width; a random share ``masked`` of
    the pixels becomes 0; 3x3 convolution, ReLU, 3x3 convolution make the teacher's map of the rest.
    All of these are trained with the student.
    """

    student_channels: InitVar[int]
    teacher_channels: InitVar[int]
    masked: float = 0.75

    needs: ClassVar = "features"
    same_channels: ClassVar = False

    def __post_init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__post_init__()
        if not 0 <= self.masked < 1:
            raise UserError(f"masked is {self.masked}; it is a share of 0 or more and below 1")
        self.align = nn.Conv2d(student_channels, teacher_channels, 1)
        self.generate = nn.ModuleList(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1) for _ in range(2)
        )

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps (B, D_S, H, W) and (B, D_T, H, W) -> scalar."""
        student, teacher = prepare_pair(student, teacher, same_channels=False)
        where = match_valid(valid, student)
        return masked_generative_loss(self.generated(student, where), teacher, valid=where)

    def generated(self, student: Tensor, where: Tensor | None) -> Tensor:
        """The teacher's map, made of a part of the student's: (B, D_S, H, W) -> (B, D_T, H, W).

        Args:
            student: in the precision of the parameters.
            where: (B, H, W) bool, False at padding, which enters no convolution; None: no padding.
        """
        # drawn on the CPU, so that every device hides the same pixels
        hidden = (torch.rand(len(student), *student.shape[2:]) < self.masked).to(student.device)
        outside = torch.zeros_like(hidden) if where is None else ~where
        first, second = self.generate
        with without_autocast(student):
            seen = self.align(student).masked_fill((hidden | outside)[:, None], 0.0)
            made: Tensor = second(first(seen).relu().masked_fill(outside[:, None], 0.0))
        return made


LOSS = MaskedGenerativeLoss
