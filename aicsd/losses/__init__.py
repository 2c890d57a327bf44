"""Losses: tensors in, tensor out. Each works in anybody's training loop.

One file a loss. The name of the file is the name of the loss in recipes; ``LOSS`` in it is the
module. A file that starts with an underscore, or is in ``HELPERS``, holds no loss of a recipe.
"""

from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from aicsd.losses.attention import AttentionLoss, attention_loss
from aicsd.losses.correlation import CorrelationLoss, correlation_loss
from aicsd.losses.cross_entropy import CrossEntropyLoss, cross_entropy_loss
from aicsd.losses.cross_entropy_and_kd import cross_entropy_and_kd_loss
from aicsd.losses.icsd import ICSDLoss, ics_matrix, icsd_loss, intra_class_distributions
from aicsd.losses.pairwise import PairwiseLoss, pairwise_loss
from aicsd.losses.pixel_kd import PixelKDLoss, pixel_kd_loss

HELPERS = ("adapters", "cross_entropy_and_kd")

__all__ = [
    "AttentionLoss",
    "CorrelationLoss",
    "CrossEntropyLoss",
    "ICSDLoss",
    "PairwiseLoss",
    "PixelKDLoss",
    "attention_loss",
    "correlation_loss",
    "cross_entropy_and_kd_loss",
    "cross_entropy_loss",
    "ics_matrix",
    "icsd_loss",
    "intra_class_distributions",
    "list_losses",
    "loss_class",
    "pairwise_loss",
    "pixel_kd_loss",
]


def list_losses() -> list[str]:
    """Names of the losses that a recipe can use."""
    names = (module.name for module in iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_") and name not in HELPERS)


def loss_class(name: str) -> type[nn.Module]:
    """The module of one of :func:`list_losses`."""
    found: type[nn.Module] = import_module(f"{__name__}.{name}").LOSS
    return found
