"""Losses: tensors in, tensor out. Each works in any training loop.

One file a loss. The name of the file is the name of the loss in recipes; ``LOSS`` in it is the
module. A file that starts with an underscore, or is in ``HELPERS``, holds no loss of a recipe.

Function and module of every loss can be imported from here: of ``dice.py``, ``dice_loss`` and
``DiceLoss``. Those of the AICSD paper are listed, so that type checkers and the API page find them.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

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


def __getattr__(name: str) -> Any:
    function = name.removesuffix("_loss")
    if name.endswith("_loss") and function in list_losses():
        return getattr(import_module(f"{__name__}.{function}"), name)
    for loss in list_losses() if name.endswith("Loss") else ():
        if loss_class(loss).__name__ == name:
            return loss_class(loss)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(
        {
            *globals(),
            *(f"{name}_loss" for name in list_losses()),
            *(loss_class(name).__name__ for name in list_losses()),
        }
    )


def list_losses() -> list[str]:
    """Names of the losses that a recipe can use."""
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    names = (module.name for module in iter_modules(__path__))
    return tuple(sorted(n for n in names if not n.startswith("_") and n not in HELPERS))


def loss_class(name: str) -> type[nn.Module]:
    """The module of one of :func:`list_losses`."""
    found: type[nn.Module] = import_module(f"{__name__}.{name}").LOSS
    return found
