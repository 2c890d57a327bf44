"""Batch norm of a frozen network as part of the convolution before it: one pass less over a map."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from aicsd.models.maps import as_output
from aicsd.types import SegOutput

TOLERANCE = 1e-4


def fold_batch_norm(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in evaluation mode, with batch norms folded into their convolutions.

    Which convolution feeds which batch norm is seen on one forward pass. A batch norm whose
    convolution is of another kind than ``nn.Conv2d`` stays as it is.

    Args:
        net: any network in evaluation mode; it is not changed.
        example: (1, 3, H, W) input, with which the copy is tried out.

    Returns:
        The copy; unfolded where folding would change its output, because something else uses the
        output of a convolution too.
    """
    folded = copy.deepcopy(net)
    names = {module: name for name, module in folded.named_modules()}
    with torch.no_grad():
        for norm, convolution in _pairs(folded, example).items():
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            parent, _, name = names[norm].rpartition(".")
            # timm's batch norms hold their activation
            rest = getattr(norm, "act", None)
            setattr(folded.get_submodule(parent), name, rest or nn.Identity())
        # TF32 would round both networks by more than folding changes
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            same = _close(as_output(folded(example)), as_output(net(example)))
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
    return folded if same else copy.deepcopy(net)


def _pairs(net: nn.Module, example: Tensor) -> dict[Any, Any]:
    """Every batch norm whose input is just what a convolution returned, with that convolution."""
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors too, or their ids get reused
    pairs: dict[Any, Any] = {}

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[id(output)] = (module, output)

    def match(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        if id(inputs[0]) in outputs:
            pairs[module] = outputs[id(inputs[0])][0]

    hooks = [
        module.register_forward_hook(keep if type(module) is nn.Conv2d else match)
        for module in net.modules()
        if type(module) is nn.Conv2d or isinstance(module, nn.BatchNorm2d)
    ]
    try:
        with torch.no_grad():
            net(example)
    finally:
        for hook in hooks:
            hook.remove()
    used = list(pairs.values())
    return {norm: conv for norm, conv in pairs.items() if used.count(conv) == 1}


def _close(ours: SegOutput, theirs: SegOutput) -> bool:
    pairs = zip(
        (ours.logits, *ours.features.values()),
        (theirs.logits, *theirs.features.values()),
        strict=True,
    )
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)
