"""Knowledge distillation for semantic segmentation."""

from aicsd._version import __version__
from aicsd.telemetry import switch_off

switch_off()

from aicsd.api import distill, train  # noqa: E402  (imports what is switched off)
from aicsd.engine.run import Run  # noqa: E402
from aicsd.losses import CrossEntropyLoss, ICSDLoss, PixelKDLoss  # noqa: E402
from aicsd.models import DeepLabV3Plus, Segmenter, load_model  # noqa: E402

__all__ = [
    "CrossEntropyLoss",
    "DeepLabV3Plus",
    "ICSDLoss",
    "PixelKDLoss",
    "Run",
    "Segmenter",
    "__version__",
    "distill",
    "load_model",
    "train",
]
