"""Pixel-wise distillation of the logits (Hinton et al., arXiv 1503.02531, at every pixel)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.losses._checks import check_temperature, match_inside, prepare_pair

Reduction = Literal["pixel_mean", "element_mean", "image_sum"]


def pixel_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "pixel_mean",
    inside: Tensor | None = None,
) -> Tensor:
    """T^2 KL(p_T || p_S) over the classes at every pixel, p = softmax(z / T).

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        temperature: T > 0.
        reduction: ``pixel_mean`` divides the sum by the number of pixels (default: it does not
            change with the map's size, the batch or C); ``element_mean`` divides once more by C
            (the published AICSD code, whose weight 10 belongs to it); ``image_sum`` divides by B
            only.
        inside: (B, H', W') bool; False at padding, which is then neither summed nor counted.

    Returns:
        Unweighted scalar >= 0; 0 where the predictions agree.

    Raises:
        UserError: shapes that differ, an unknown reduction, or a temperature that is not positive.
    """
    check_temperature(temperature)
    check_reduction(reduction)
    student, teacher = prepare_pair(student, teacher)
    inside = match_inside(inside, student)
    log_teacher = (teacher / temperature).log_softmax(dim=1)
    log_student = (student / temperature).log_softmax(dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)  # B H W
    pixels = student.new_tensor(divergence.numel())
    if inside is not None:
        divergence = divergence.masked_fill(~inside, 0.0)
        pixels = inside.sum().clamp_min(1)
    total = temperature**2 * divergence.sum()
    if reduction == "image_sum":
        return total / student.shape[0]
    return total / pixels / (student.shape[1] if reduction == "element_mean" else 1)


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction."""
    if reduction not in get_args(Reduction):
        raise UserError(f"reduction is {reduction!r}; allowed are {', '.join(get_args(Reduction))}")


class PixelKDLoss(nn.Module):
    """:func:`pixel_kd_loss` with its settings kept."""

    target = "teacher"

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "pixel_mean") -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        self.temperature = temperature
        self.reduction: Reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor, inside: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return pixel_kd_loss(
            student,
            teacher,
            temperature=self.temperature,
            reduction=self.reduction,
            inside=inside,
        )
