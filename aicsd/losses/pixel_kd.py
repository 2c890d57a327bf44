"""Pixel-wise distillation of the logits (Hinton et al., arXiv 1503.02531, at every pixel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import (
    check_pair,
    check_temperature,
    match_valid,
    safe_precision,
    to_safe_precision,
)
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics
from aicsd.losses._pixel_terms import PixelTerms
from aicsd.losses._ranks import shared_count

DEVIATION_FLOOR = 1e-7
Reduction = Literal["pixel_mean", "element_mean", "image_sum"]


def pixel_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction | None = None,
    standardize: bool = False,
    numerics: Numerics = "described",
    valid: Tensor | None = None,
) -> Tensor:
    """T^2 KL(p_T || p_S) over the classes at every pixel, p = softmax(z / T).

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits.
        temperature: T > 0.
        reduction: ``pixel_mean`` divides the sum by the number of pixels (default: it does not
            change with the map's size, the batch or C); ``element_mean`` divides once more by C
            (the released AICSD code, whose weight 10 belongs to it); ``image_sum`` divides by B
            only.
        standardize: take (z - mean_c z) / std_c z of every pixel for z, in both networks: the
            student need not match the size of the teacher's logits, only their shape (Sun et al.,
            CVPR 2024, arXiv 2403.01427; with T = 2 there). std is that of the C values themselves.
        numerics: ``released`` is the released code: ``element_mean``, and ``valid`` is not
            looked at, since that code sums and counts padding too. (It runs T = 1.)
        valid: (B, H', W') bool; False at padding, which is then neither summed nor counted.

    Returns:
        Unweighted scalar >= 0; 0 where the predictions agree.

    Raises:
        UserError: shapes that differ, an unknown reduction, a temperature that is not positive,
            or a reduction that the released code does not have.
    """
    check_temperature(temperature)
    reduction = resolve_reduction(reduction, numerics)
    check_numerics(numerics, standardize=(standardize, False))
    check_pair(student, teacher)
    if standardize:
        student, teacher = _standardize(student), _standardize(teacher.detach())
    valid = match_valid(valid, student) if numerics == "described" else None
    _, divergence = PixelTerms.apply(
        student, None, 0, teacher.detach(), valid, temperature, safe_precision(student)
    )
    return scale_divergence(divergence, student, valid, temperature, reduction)


def _standardize(logits: Tensor) -> Tensor:
    """(B, C, H, W) with mean 0 and standard deviation 1 over the classes of every pixel."""
    centred = to_safe_precision(logits) - to_safe_precision(logits).mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / variance.clamp_min(DEVIATION_FLOOR**2).sqrt()


def scale_divergence(
    divergence: Tensor,
    student: Tensor,
    valid: Tensor | None,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    """The sum of KL over the pixels -> the loss."""
    batch, classes, height, width = student.shape
    total = temperature**2 * divergence
    if reduction == "image_sum":
        return total / batch
    pixels = batch * height * width if valid is None else shared_count(valid.sum())
    return total / pixels / (classes if reduction == "element_mean" else 1)


def resolve_reduction(reduction: Reduction | None, numerics: Numerics) -> Reduction:
    """The reduction, with its default; an unknown or contradicting one is refused."""
    check_numerics(numerics)
    if reduction is None:
        return "element_mean" if numerics == "released" else "pixel_mean"
    if reduction not in get_args(Reduction):
        raise UserError(f"reduction is {reduction!r}; allowed are {', '.join(get_args(Reduction))}")
    check_numerics(numerics, reduction=(reduction, "element_mean"))
    return reduction


@dataclass(eq=False, repr=False)
class PixelKDLoss(LossModule):
    """:func:`pixel_kd_loss` with its settings kept."""

    temperature: float = 1.0
    reduction: Reduction | None = None
    standardize: bool = False
    numerics: Numerics = "described"

    needs: ClassVar = "probabilities"
    follows_numerics: ClassVar = ("reduction",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        self.reduction = resolve_reduction(self.reduction, self.numerics)
        check_numerics(self.numerics, standardize=(self.standardize, False))

    @property
    def needs_of_teacher(self) -> str:
        """``logits`` where the classes that a cache of the largest leaves out change the mean."""
        return "logits" if self.standardize else "probabilities"

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return pixel_kd_loss(student, teacher, valid=valid, **self.settings)


LOSS = PixelKDLoss
