"""Distillation of borders and of interiors (Liu et al., BPKD, WACV 2024, arXiv 2306.08075)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import (
    check_sizes,
    check_temperature,
    check_weights,
    match_mask,
    prepare_pair,
    valid_pixels,
)
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import mean_over_ranks
from aicsd.losses.channel_wise import channel_wise_loss
from aicsd.types import IGNORE_INDEX


def boundary_kd_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    edge: float = 1.0,
    body: float = 3.0,
    temperature: float = 4.0,
    radius: int = 1,
    ignore_index: int = IGNORE_INDEX,
    valid: Tensor | None = None,
) -> Tensor:
    """edge L_E + body L_B.

    A pixel is on a border if another class is within ``radius`` pixels of the map. L_E is
    T^2 KL(p_T || p_S) over the classes, averaged over the border pixels of each class and then over
    the classes (of the batch of all processes), so that a class with short borders counts as much
    as one with long ones. L_B is :func:`channel_wise_loss` over all other pixels. Where there is no
    label, the class is the one that the teacher predicts.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        mask: (B, H', W') integer class ids in [0, C) or ``ignore_index``, taken to (H, W) by
            nearest pixel.
        edge: weight of L_E, 0 or above.
        body: weight of L_B, 0 or above.
        temperature: T > 0, of both.
        radius: 1 or more.
        ignore_index: id of unlabelled pixels.
        valid: (B, H', W') bool; padding (False) is neither a border nor an interior.

    Returns:
        Unweighted scalar >= 0; 0 where the predictions agree, and where nothing is valid.

    Raises:
        UserError: shapes that differ, or a bad option.
    """
    check_temperature(temperature)
    check_weights(edge=edge, body=body)
    check_sizes(radius=radius)
    student, teacher = prepare_pair(student, teacher)
    labels, borders, inside = label_borders(mask, teacher, radius, ignore_index, valid)
    at_borders = _class_balanced(student, teacher, labels, borders, temperature)
    interior = channel_wise_loss(student, teacher, temperature=temperature, valid=inside & ~borders)
    return edge * at_borders + body * interior


def label_borders(
    mask: Tensor, teacher: Tensor, radius: int, ignore_index: int, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, H, W), and bool maps of the borders and of the pixels inside the image.

    The arguments are those of :func:`boundary_kd_loss`; the maps have the size of ``teacher``.
    """
    labels = match_mask(mask, teacher).long()
    inside = valid_pixels(valid, teacher)
    labels = torch.where(labels == ignore_index, teacher.argmax(dim=1), labels)
    return labels, _borders(labels, inside, radius), inside


def class_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p_T || p_S) over the classes at every pixel, (B, H, W), p = softmax(z / T)."""
    log_student = (student / temperature).log_softmax(dim=1)
    target = (teacher / temperature).softmax(dim=1)
    return F.kl_div(log_student, target, reduction="none").sum(dim=1)


def _borders(labels: Tensor, inside: Tensor, radius: int) -> Tensor:
    """(B, H, W) bool: pixels inside the image with more than one class around them."""
    side = 2 * radius + 1
    bounds = [
        F.max_pool2d(
            (sign * labels).float().masked_fill(~inside, float("-inf"))[:, None],
            side,
            stride=1,
            padding=radius,
        )[:, 0]
        for sign in (1, -1)
    ]
    return (bounds[0] > -bounds[1]) & inside


def _class_balanced(
    student: Tensor, teacher: Tensor, labels: Tensor, borders: Tensor, temperature: float
) -> Tensor:
    """Mean of the divergence over the border pixels of each class, mean over the classes."""
    divergence = class_divergence(student, teacher, temperature)
    classes = torch.arange(student.shape[1], device=labels.device)[:, None, None]
    of_class = (labels[:, None] == classes) & borders[:, None]
    counts = mean_over_ranks(of_class.sum(dim=(0, 2, 3)).to(student.dtype))
    shares = 1 / (counts.clamp_min(torch.finfo(counts.dtype).tiny) * (counts > 0).sum())
    weights = shares[labels].masked_fill(~borders, 0.0)
    return temperature**2 * (weights * divergence.masked_fill(~borders, 0.0)).sum()


@dataclass(eq=False, repr=False)
class BoundaryKDLoss(LossModule):
    """:func:`boundary_kd_loss` with its settings kept."""

    edge: float = 1.0
    body: float = 3.0
    temperature: float = 4.0
    radius: int = 1
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_weights(edge=self.edge, body=self.body)
        check_sizes(radius=self.radius)

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Two (B, C, H, W) logit maps and (B, H, W) labels -> scalar."""
        return boundary_kd_loss(student, teacher, mask, valid=valid, **self.settings)


LOSS = BoundaryKDLoss
