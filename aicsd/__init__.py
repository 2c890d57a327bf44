"""Knowledge distillation for semantic segmentation.

Names are imported when they are first used, so that a loss costs no more than PyTorch.
"""

from typing import TYPE_CHECKING

from aicsd._lazy import on_first_use
from aicsd._version import __version__
from aicsd.telemetry import switch_off

if TYPE_CHECKING:
    from aicsd.api import distill, train
    from aicsd.catalog import create_model, list_datasets, list_models
    from aicsd.commands import evaluate, export, predict, report
    from aicsd.data import Classes
    from aicsd.distiller import Distiller
    from aicsd.engine.run import Run
    from aicsd.errors import UserError
    from aicsd.evaluation import Metrics
    from aicsd.losses import (
        AttentionLoss,
        CorrelationLoss,
        CrossEntropyLoss,
        ICSDLoss,
        PairwiseLoss,
        PixelKDLoss,
        list_losses,
    )
    from aicsd.methods import Recipe, list_methods, load_recipe
    from aicsd.models import DeepLabV3Plus, Segmenter, load_model
    from aicsd.teacher import Teacher

switch_off()

_HOMES = {
    "aicsd.api": ("distill", "train"),
    "aicsd.catalog": ("create_model", "list_datasets", "list_models"),
    "aicsd.commands": ("evaluate", "export", "predict", "report"),
    "aicsd.data": ("Classes",),
    "aicsd.distiller": ("Distiller",),
    "aicsd.engine.run": ("Run",),
    "aicsd.errors": ("UserError",),
    "aicsd.evaluation": ("Metrics",),
    "aicsd.losses": (
        "AttentionLoss",
        "CorrelationLoss",
        "CrossEntropyLoss",
        "ICSDLoss",
        "PairwiseLoss",
        "PixelKDLoss",
        "list_losses",
    ),
    "aicsd.methods": ("Recipe", "list_methods", "load_recipe"),
    "aicsd.models": ("DeepLabV3Plus", "Segmenter", "load_model"),
    "aicsd.teacher": ("Teacher",),
}
"""Module -> the public names that live in it."""

__all__ = [
    "AttentionLoss",
    "Classes",
    "CorrelationLoss",
    "CrossEntropyLoss",
    "DeepLabV3Plus",
    "Distiller",
    "ICSDLoss",
    "Metrics",
    "PairwiseLoss",
    "PixelKDLoss",
    "Recipe",
    "Run",
    "Segmenter",
    "Teacher",
    "UserError",
    "__version__",
    "create_model",
    "distill",
    "evaluate",
    "export",
    "list_datasets",
    "list_losses",
    "list_methods",
    "list_models",
    "load_model",
    "load_recipe",
    "predict",
    "report",
    "train",
]

if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
