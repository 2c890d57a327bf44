"""A gradient in closed form that refuses to be differentiated once more."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from aicsd.errors import UserError


class FirstOrder(torch.autograd.Function):
    """``apply(grad, *inputs)`` gives ``grad``, through which nothing can go back to the inputs.

    PyTorch's own ``once_differentiable`` looks at the incoming gradient only, so that the second
    derivative of a loss itself would silently be 0.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:  # noqa: ARG004
        raise UserError(
            "this loss cannot be differentiated twice, its gradient is in closed form: leave out "
            "create_graph, or build the loss from ics_matrix, log_softmax and PyTorch's own terms"
        )
