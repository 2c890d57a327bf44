"""Losses: tensors in, tensor out. Each works in anybody's training loop."""

from aicsd.losses.attention import AttentionLoss, attention_loss
from aicsd.losses.correlation import CorrelationLoss, correlation_loss
from aicsd.losses.cross_entropy import CrossEntropyLoss, cross_entropy_loss
from aicsd.losses.cross_entropy_and_kd import cross_entropy_and_kd_loss
from aicsd.losses.icsd import ICSDLoss, ics_matrix, icsd_loss, intra_class_distributions
from aicsd.losses.pairwise import PairwiseLoss, pairwise_loss
from aicsd.losses.pixel_kd import PixelKDLoss, pixel_kd_loss

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
    "pairwise_loss",
    "pixel_kd_loss",
]
