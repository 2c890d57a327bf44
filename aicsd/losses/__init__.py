"""Losses: tensors in, tensor out. Each works in anybody's training loop."""

from aicsd.losses.cross_entropy import CrossEntropyLoss, cross_entropy_loss
from aicsd.losses.icsd import ICSDLoss, ics_matrix, icsd_loss, intra_class_distributions
from aicsd.losses.pixel_kd import PixelKDLoss, pixel_kd_loss

__all__ = [
    "CrossEntropyLoss",
    "ICSDLoss",
    "PixelKDLoss",
    "cross_entropy_loss",
    "ics_matrix",
    "icsd_loss",
    "intra_class_distributions",
    "pixel_kd_loss",
]
