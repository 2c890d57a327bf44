"""Sums over the processes of a distributed training, so that their number changes no loss.

Each process computes its loss on its own images, and the gradients of the parameters are averaged
over the processes. A mean over pixels or a matrix of the whole batch therefore depends on the
others. Without ``torch.distributed``, in a single process, or with gradients off (evaluation,
possibly in one process alone), nothing is sent and every value stays local.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Processes that train together."""
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        return dist.get_world_size()
    return 1


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor of one shape over all processes, with a gradient.

    Each of them must compute the same loss from it: the gradient then is that of the mean, as the
    average of the parameters' gradients requires.
    """
    if ranks() == 1:
        return values
    mean: Tensor = _Mean.apply(values)
    return mean


def shared_count(count: Tensor, least: float = 1) -> Tensor:
    """Divisor of a sum over this process's pixels: their mean number, above 0.

    The mean of the quotients over the processes is the sum over all pixels divided by their number.

    Args:
        count: pixels of this process, or the sum of their weights.
        least: divisor in place of 0.
    """
    number = ranks()
    if number == 1:
        return count.clamp_min(least)
    total = count.double()
    dist.all_reduce(total)
    return total.clamp_min(least) / number


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        total = values.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad
