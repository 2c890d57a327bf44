"""Inter-class similarity distillation (Mansurian et al., AICSD, arXiv 2308.04243)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses._checks import (
    check_pair,
    check_temperature,
    match_valid,
    prepare_pair,
    safe_precision,
    to_safe_precision,
    without_autocast,
)
from aicsd.losses._ics_matrix import ICSMatrix, lowest_score
from aicsd.losses._module import LossModule
from aicsd.losses._numerics import Numerics, check_numerics
from aicsd.losses._ranks import mean_over_ranks, ranks

ROW_NORM_FLOOR = 1e-6


def _log_distributions(
    logits: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, C, N) probabilities and their logs over the N pixels; both 0 outside the image."""
    check_temperature(temperature)
    if logits.dim() != 4:
        raise UserError(f"logits {tuple(logits.shape)} must be (B, C, H, W)")
    scores = to_safe_precision(logits).flatten(2) / temperature
    scores = scores.clamp_min(lowest_score(scores.dtype))  # a logit may be -inf
    keep = _pixels_that_count(valid, logits)
    if keep is None:
        log_rho = scores.log_softmax(dim=2)
        return log_rho.exp(), log_rho
    log_rho = scores.masked_fill(~keep, -torch.inf).log_softmax(dim=2)
    return log_rho.exp(), log_rho.masked_fill(~keep, 0.0)


def _pixels_that_count(valid: Tensor | None, logits: Tensor) -> Tensor | None:
    """``valid`` at the size of the logits, (B, 1, N)."""
    valid = match_valid(valid, logits)
    if valid is None:
        return None
    keep = valid.flatten(1)[:, None]
    # an image that is padding only keeps all its pixels: any distribution will do, NaN will not
    return keep | ~keep.any(dim=2, keepdim=True)


def intra_class_distributions(
    logits: Tensor, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """One distribution over the pixels for every class: rho_c = softmax over space of z_c / T.

    Args:
        logits: (B, C, H, W).
        temperature: T > 0.
        valid: (B, H', W') bool; pixels where it is False (padding) get probability 0 and are left
            out of the sum. It is taken to (H, W) by nearest pixel.

    Returns:
        (B, C, H, W); each class map sums to 1. float64 if ``logits`` is, else float32.

    Raises:
        UserError: a temperature that is not positive, or another number of dimensions.
    """
    rho, _ = _log_distributions(logits, temperature, valid)
    return rho.reshape(logits.shape)


def ics_matrix(logits: Tensor, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Inter-class similarity: K[b, i, j] = KL(rho_i || rho_j).

    KL(rho_i || rho_j) = sum over x of rho_i(x) (log rho_i(x) - log rho_j(x)), x the pixels.

    Args:
        logits: (B, C, H, W).
        temperature: T > 0 of the intra-class distributions.
        valid: (B, H', W') bool; see :func:`intra_class_distributions`.

    Returns:
        (B, C, C), 0 or above up to rounding, with a diagonal of exactly 0. It is not symmetric.
        float64 if ``logits`` is, else float32.
    """
    rho, log_rho = _log_distributions(logits, temperature, valid)
    with without_autocast(rho):
        cross = rho @ log_rho.transpose(1, 2)  # (B, C, C): sum_x rho_i log rho_j
    return cross.diagonal(dim1=1, dim2=2)[:, :, None] - cross


def icsd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    normalize_rows: bool = True,
    per_image: bool = False,
    numerics: Numerics = "described",
    valid: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the two ICS matrices: L_ICS = mean_ij (K^T_ij - K^S_ij)^2.

    Args:
        student: (B, C, H, W) logits; the only input that gets a gradient.
        teacher: (B, C, H, W) logits; -inf is taken for the smallest score that can be computed
            with, so that a row of the matrix with an infinite entry points to that entry.
        temperature: T > 0 of the intra-class distributions.
        normalize_rows: divide every row of both matrices by its L2 norm. On by default, as in the
            released code: KLs of 1 to 15 nats otherwise make the loss, and the weight that suits
            it, depend on the size of the map and on the dataset.
        per_image: compare the matrix of each image instead of their mean over the batch. Off by
            default, as in the released code: in one image most classes are absent, and the mean
            over the batch is less noisy.
        numerics: ``released`` is the released code instead: mean_ij (K^T_ij - K^S_ij)^2 / B of
            :func:`released_ics_matrix`. Its temperature is 1, its rows are normalised, the batch
            has one matrix, and ``valid`` is ignored, since that code never masks padding.
        valid: (B, H', W') bool; False at padding, which then takes no part. Unlabelled pixels of
            the image do take part.

    Returns:
        Unweighted scalar >= 0; 0 where the matrices agree. With normalised rows it is at most
        4 / C.

    Raises:
        UserError: shapes that differ, a temperature that is not positive, or an option that the
            released code does not have.
    """
    _check_options(temperature, normalize_rows, per_image, numerics)
    if numerics == "released":
        student, teacher = prepare_pair(student, teacher)
        difference = released_ics_matrix(teacher) - released_ics_matrix(student)
        return difference.square().mean() / (student.shape[0] * ranks())
    check_pair(student, teacher)
    dtype = safe_precision(student)
    keep = _pixels_that_count(valid, student)
    where = None if keep is None else keep.to(dtype)
    target, matrix = (
        _reduce(ICSMatrix.apply(maps, where, temperature, dtype), normalize_rows, per_image)
        for maps in (teacher.detach(), student)
    )
    return (target - matrix).square().mean()


def released_ics_matrix(logits: Tensor) -> Tensor:
    """The matrix that the released code compares; it measures hardly any similarity.

    q = softmax of the logits over the *rows* y of each column x (not over all pixels), and, with
    probabilities where a divergence has their logs,
    K[i, j] = 1/B sum over b, y, x of q_j (log q_j - q_i) for j >= i; K[j, i] = K[i, j].
    Then each row is divided by its L2 norm. The first part, minus the entropy of class max(i, j),
    is hundreds of times the second, the only one that compares two classes.

    Where a q falls below the smallest float, the released code has NaN gradients; here they are 0.

    Args:
        logits: (B, C, H, W).

    Returns:
        (C, C), one matrix for the batch. float64 if ``logits`` is, else float32.
    """
    log_q = to_safe_precision(logits).log_softmax(dim=2)
    q = log_q.exp()
    log_q = log_q.clamp_min(torch.finfo(log_q.dtype).min)  # 0 log 0 is 0
    classes = torch.arange(logits.shape[1], device=logits.device)
    larger = torch.maximum(classes[:, None], classes[None, :])
    negative_entropy = (q * log_q).sum(dim=(0, 2, 3))  # (C,)
    with without_autocast(q):
        flat = q.flatten(2)
        products = (flat @ flat.transpose(1, 2)).sum(dim=0)  # (C, C): sum of q_i q_j
    matrix = (negative_entropy[larger] - products) / logits.shape[0]
    return F.normalize(mean_over_ranks(matrix), dim=1)


def _check_options(
    temperature: float, normalize_rows: bool, per_image: bool, numerics: Numerics
) -> None:
    check_temperature(temperature)
    check_numerics(
        numerics,
        temperature=(temperature, 1.0),
        normalize_rows=(normalize_rows, True),
        per_image=(per_image, False),
    )


def _reduce(matrices: Tensor, normalize_rows: bool, per_image: bool) -> Tensor:
    """(B, C, C) -> (B or 1, C, C)."""
    if not per_image:
        matrices = mean_over_ranks(matrices.mean(dim=0, keepdim=True))
    if normalize_rows:
        norms = torch.linalg.vector_norm(matrices, dim=2, keepdim=True)
        matrices = matrices / norms.clamp_min(ROW_NORM_FLOOR)
    return matrices


@dataclass(eq=False, repr=False)
class ICSDLoss(LossModule):
    """:func:`icsd_loss` with its settings kept.

    Example:
        >>> icsd = ICSDLoss(temperature=1.0)
        >>> logits = torch.randn(2, 5, 8, 8)
        >>> float(icsd(logits, logits))
        0.0
    """

    temperature: float = 1.0
    normalize_rows: bool = True
    per_image: bool = False
    numerics: Numerics = "described"

    needs: ClassVar = "logits"
    watch: ClassVar = ("ics_matrix",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_options(**self.settings)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) logit maps -> scalar."""
        return icsd_loss(student, teacher, valid=valid, **self.settings)


LOSS = ICSDLoss
