"""Batch norm over the images of all processes (Ioffe and Szegedy, ICML 2015, arXiv 1502.03167).

PyTorch's ``SyncBatchNorm`` runs on GPUs only, and replaces the modules. This one computes with
``torch.distributed`` on any device and leaves modules, weights and names as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, distributed, nn

FEW_IMAGES = 4
"""Images of a process below which its own statistics are poor: the statistics are shared then."""


def shares_statistics(given: bool | None, batch_size: int, world: int) -> bool:
    """Whether a run computes batch norm over all processes.

    Args:
        given: value of ``sync_bn`` in the config; None leaves the choice.
        batch_size: images of one process.
        world: number of processes.
    """
    if world == 1:
        return False
    return batch_size < FEW_IMAGES if given is None else given


def share_statistics(model: nn.Module) -> None:
    """Let every batch norm of a network in training use the images of all processes.

    In evaluation, and without gradients, it stays what it is.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: Any, images: Tensor) -> Tensor:
    """(B, D, H, W) -> the same, normalised; with the activation that timm's batch norms hold."""
    if not (module.training and torch.is_grad_enabled()):
        alone: Tensor = type(module).forward(module, images)
        return alone
    maps = images.float()
    mean, variance, count = _statistics(maps)
    if module.track_running_stats and module.running_mean is not None:
        _track(module, mean.detach(), variance.detach(), count)
    maps = (maps - _channels(mean)) * _channels((variance + module.eps).rsqrt())
    if module.affine:
        maps = torch.addcmul(_channels(module.bias), maps, _channels(module.weight))
    result = maps.to(images.dtype)
    for name in ("drop", "act"):
        after = getattr(module, name, None)
        result = result if after is None else after(result)
    return result


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _track(module: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    module.num_batches_tracked.add_(1)
    factor = module.momentum
    if factor is None:  # a plain mean over all batches
        factor = 1 / float(module.num_batches_tracked)
    unbiased = variance * (count / (count - 1).clamp_min(1))
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), factor)
    module.running_var.lerp_(unbiased.to(module.running_var.dtype), factor)


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel, and values of a channel, over all processes."""
    number = maps.new_tensor([maps.numel() / maps.shape[1]])
    sums: Tensor = _Sum.apply(torch.cat([maps.sum((0, 2, 3)), number]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    # about the common mean: a mean of squares would lose digits
    squares: Tensor = _Sum.apply((maps - _channels(mean)).square().sum((0, 2, 3)))
    return mean, squares / count, count


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is summed too, since each of them uses the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        total = grad.clone()
        distributed.all_reduce(total)
        return total
