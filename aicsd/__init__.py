"""Knowledge distillation for semantic segmentation."""

from aicsd._version import __version__
from aicsd.api import Run, distill, train
from aicsd.losses import CrossEntropyLoss, ICSDLoss, PixelKDLoss
from aicsd.models import DeepLabV3Plus, Segmenter, load_model

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
