"""The ICS matrix with its gradient in closed form: two passes over the logits, no map kept.

With scores u_i(x) = (z_i(x) - max_x z_i) / T, powers e_i = exp(u_i) and totals Z_i = sum_x e_i,
log rho_i = u_i - log Z_i. All that the matrix needs of the pixels are the totals and the sums
sum_x e_i u_j, hence cross_ij = sum_x rho_i log rho_j and K_ij = cross_ii - cross_ij.

For a gradient G of the loss by K, that by cross is H = diag(sum_j G_ij) - G, and that by the logits

    dL/dz_i(x) = e_i(x) (sum_j A_ij u_j(x) - a_i) + sum_j A_ji e_j(x)

with A_ij = H_ij / (T Z_i) and a_i = (sum_j H_ij (cross_ij + log Z_j) + sum_j H_ji) / (T Z_i): two
small matrix products for each chunk of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aicsd.losses._checks import without_autocast
from aicsd.losses._chunks import chunks, powers_of
from aicsd.losses._first_order import FirstOrder


class ICSMatrix(torch.autograd.Function):
    """(B, C, H, W) logits -> (B, C, C) matrices of KL(rho_i || rho_j); see ``ics_matrix``.

    ``apply`` takes the logits, ``valid`` (B, 1, N) as 0 and 1 or None, the temperature, and the
    precision in which everything is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, valid: Tensor | None, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        with without_autocast(logits):
            top, total, cross = _summarise(logits.flatten(2), valid, temperature, dtype)
        ctx.save_for_backward(logits, valid, top, total, cross)
        ctx.temperature = temperature
        return cross.diagonal(dim1=1, dim2=2)[:, :, None] - cross

    @staticmethod
    def backward(ctx: Any, grad_matrix: Tensor) -> tuple[Tensor, None, None, None]:
        logits, valid, top, total, cross = ctx.saved_tensors
        with torch.no_grad(), without_autocast(logits):
            by_cross = torch.diag_embed(grad_matrix.sum(2)) - grad_matrix
            scale = ctx.temperature * total[:, :, None]
            mix = by_cross / scale
            shift = (by_cross * (cross + total.log()[:, None])).sum(2) + by_cross.sum(1)
            shift = shift[:, :, None] / scale
            maps = logits.flatten(2)
            grad = torch.empty_like(maps)
            for part in _parts(maps, valid, ctx.temperature, top.dtype, top):
                torch.baddbmm(shift, mix, part.scores, beta=-1, out=part.space)
                others = torch.bmm(mix.transpose(1, 2), part.powers, out=part.scores)
                torch.addcmul(others, part.space, part.powers, out=grad[..., part.chunk])
            grad = grad.view(logits.shape)
        return FirstOrder.apply(grad, logits, grad_matrix), None, None, None


def _summarise(
    maps: Tensor, valid: Tensor | None, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit (B, C, 1), total (B, C) and cross (B, C, C) over all pixels inside.

    Every chunk has its own largest logit, so that one pass is enough; the sums are brought to the
    largest of all afterwards.
    """
    tops, totals, crosses = [], [], []
    for part in _parts(maps, valid, temperature, dtype):
        tops.append(part.top)
        totals.append(part.powers.sum(2))
        crosses.append(part.powers @ part.scores.transpose(1, 2))
    every_top, every_total, sums = torch.stack(tops), torch.stack(totals), torch.stack(crosses)
    del crosses  # with many classes, they are no less than the pixels of a chunk
    top = every_top.amax(dim=0)
    below = ((every_top - top)[..., 0] / temperature).clamp_min(torch.finfo(dtype).min)
    weight = below.exp()  # chunks B C
    sums.addcmul_(every_total[..., :, None], below[..., None, :]).mul_(weight[..., None])
    total = (weight * every_total).sum(dim=0)
    return top, total, sums.sum(dim=0) / total[:, :, None] - total.log()[:, None]


def lowest_score(dtype: torch.dtype) -> float:
    """The score of a pixel that a class never has: its power is 0, its square is finite."""
    return -float(torch.finfo(dtype).max ** 0.5) / 1000


class _Part(NamedTuple):
    chunk: slice
    top: Tensor
    """(B, C, 1) largest logit inside; -inf if no pixel is."""
    scores: Tensor
    """(B, C, n); outside the image some number <= 0."""
    powers: Tensor
    """(B, C, n); 0 outside the image."""
    space: Tensor
    """(B, C, n) to write to."""


def _parts(
    maps: Tensor,
    valid: Tensor | None,
    temperature: float,
    dtype: torch.dtype,
    top: Tensor | None = None,
) -> Iterator[_Part]:
    """Scores and powers chunk by chunk, relative to ``top``, or to the chunk's own largest."""
    for chunk, (scores, powers, space) in chunks(maps, 3, dtype):
        # a probability of 0 has the logit -inf, and 0 times -inf is NaN
        logits = torch.clamp_min(maps[..., chunk].to(dtype), torch.finfo(dtype).min, out=scores)
        weight = None if valid is None else valid[..., chunk]
        if top is not None:
            own_top = top
        elif weight is None:
            own_top = logits.amax(dim=2, keepdim=True)
        else:
            own_top = torch.add(logits, weight.log(), out=space).amax(dim=2, keepdim=True)
        torch.sub(logits, own_top.clamp_min(torch.finfo(dtype).min), out=scores)
        if temperature != 1:
            scores /= temperature
        scores.clamp_(min=lowest_score(dtype))
        if weight is None:
            yield _Part(chunk, own_top, scores, powers_of(scores, powers), space)
        else:
            scores.clamp_(max=0)
            yield _Part(chunk, own_top, scores, powers_of(scores, powers).mul_(weight), space)
