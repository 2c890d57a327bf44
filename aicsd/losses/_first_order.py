"""A gradient in closed form that refuses to be differentiated once more."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from aicsd.errors import UserError


class FirstOrder(torch.autograd.Function):
    """``apply(grad, maps, first[, second])`` gives ``grad``, through which nothing can go back to
    the inputs.

    PyTorch's own ``once_differentiable`` checks the incoming gradient only, so that the second
    derivative of a loss itself would silently be 0.

    The inputs are named one by one: with ``*inputs``, ``torch.compile`` of PyTorch 2.14 returns one
    of them as the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004
        grad: Tensor,
        maps: Tensor,  # noqa: ARG004
        first: Tensor,  # noqa: ARG004
        second: Tensor | None = None,  # noqa: ARG004
    ) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:  # noqa: ARG004
        raise UserError(
            "this loss cannot be differentiated twice, its gradient is in closed form: leave out "
            "create_graph, or build the loss from ics_matrix, log_softmax and PyTorch's own terms"
        )
