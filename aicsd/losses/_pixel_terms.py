"""Cross entropy and pixel-wise KD with their gradients in closed form, chunk by chunk.

At a pixel, with p = softmax(z / T) over the classes:

    CE = -log p^S_label, T = 1        dCE/dz^S_c = p^S_c - [c = label]
    KL = KL(p^T || p^S)               dKL/dz^S_c = (p^S_c - p^T_c) / T
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aicsd.losses._chunks import LOWEST_SCORE, chunks, powers_of
from aicsd.losses._first_order import FirstOrder


class PixelTerms(torch.autograd.Function):
    """Sums over the pixels of the cross entropy and of KL(p_T || p_S); both read one softmax.

    ``apply`` takes the student's logits (B, C, H, W); the mask (B, H, W) with its ignore_index, or
    None; the teacher's logits or None; where they count, (B, H, W) bool or None for everywhere;
    the temperature (1 if there is a mask); and the precision in which everything is computed. The
    sum of a term without an input is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        mask: Tensor | None,
        ignore_index: int,
        teacher: Tensor | None,
        valid: Tensor | None,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(student, mask, teacher, valid)
        ctx.options = ignore_index, temperature, dtype
        maps, mask, target, valid = _flatten(student, mask, teacher, valid)
        zero = torch.zeros((), dtype=dtype, device=maps.device)
        entropies, divergences = [zero], [zero]
        for chunk, (scores, powers, target_scores, target_powers) in chunks(maps, 4, dtype):
            total = _softmax(maps[..., chunk], temperature, scores, powers)
            if mask is not None:
                label, ignored = _labels(mask[..., chunk], ignore_index)
                entropy = total.log() - scores.gather(1, label)
                entropies.append(entropy.masked_fill_(ignored, 0).sum())
            if target is not None:
                part = target[..., chunk]
                target_total = _softmax(part, temperature, target_scores, target_powers, floor=True)
                products = target_scores.sub_(scores).mul_(target_powers)
                divergence = products.sum(dim=1, keepdim=True) / target_total
                divergence += total.log() - target_total.log()
                if valid is not None:
                    divergence.masked_fill_(~valid[..., chunk], 0)
                divergences.append(divergence.sum())
        return torch.stack(entropies).sum(), torch.stack(divergences).sum()

    @staticmethod
    def backward(ctx: Any, grad_ce: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        student = ctx.saved_tensors[0]
        with torch.no_grad():
            maps, mask, target, valid = _flatten(*ctx.saved_tensors)
            grad = _gradient(maps, mask, target, valid, grad_ce, grad_kl, *ctx.options)
        grad = FirstOrder.apply(grad.view(student.shape), student, grad_ce, grad_kl)
        return grad, None, None, None, None, None, None


def _gradient(
    maps: Tensor,
    mask: Tensor | None,
    target: Tensor | None,
    valid: Tensor | None,
    grad_ce: Tensor,
    grad_kl: Tensor,
    ignore_index: int,
    temperature: float,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient by the student's logits, (B, C, N)."""
    grad = torch.empty_like(maps)
    for chunk, (scores, powers, target_scores, target_powers) in chunks(maps, 4, dtype):
        total = _softmax(maps[..., chunk], temperature, scores, powers)
        weight = torch.zeros_like(total)
        if mask is not None:
            label, ignored = _labels(mask[..., chunk], ignore_index)
            ce_weight = grad_ce * ~ignored
            weight += ce_weight
        if target is not None:
            part = target[..., chunk]
            target_total = _softmax(part, temperature, target_scores, target_powers)
            kl_weight = (grad_kl / temperature).expand_as(total)
            if valid is not None:
                kl_weight = kl_weight * valid[..., chunk]
            weight += kl_weight
            target_powers *= kl_weight / target_total
        powers *= weight / total
        if target is not None:
            powers -= target_powers
        if mask is not None:
            powers.scatter_add_(1, label, -ce_weight)
        grad[..., chunk] = powers
    return grad


def _flatten(
    student: Tensor, mask: Tensor | None, teacher: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Logits (B, C, N), and what is known of the pixels (B, 1, N)."""
    return (
        student.flatten(2),
        None if mask is None else mask.flatten(1)[:, None],
        None if teacher is None else teacher.flatten(2),
        None if valid is None else valid.flatten(1)[:, None],
    )


def _softmax(
    logits: Tensor, temperature: float, scores: Tensor, powers: Tensor, *, floor: bool = False
) -> Tensor:
    """Fill (z - max_c z) / T and its exp, (B, C, n); return the sum of the latter, (B, 1, n).

    With ``floor``, scores are at least LOWEST_SCORE: a class of the teacher at -inf then adds 0 to
    the divergence, and not -inf times 0.
    """
    logits = logits.to(scores.dtype)
    torch.sub(logits, logits.amax(dim=1, keepdim=True), out=scores)
    if temperature != 1:
        scores /= temperature
    if floor:
        return torch.exp(scores.clamp_(min=LOWEST_SCORE), out=powers).sum(dim=1, keepdim=True)
    return powers_of(scores, powers).sum(dim=1, keepdim=True)


def _labels(mask: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Class ids, 0 where there is none, and where that is; both (B, 1, n)."""
    ignored = mask == ignore_index
    return mask.long().masked_fill(ignored, 0), ignored
