"""Evaluation: one confusion matrix, and all metrics computed from it."""

from aicsd.evaluation.evaluate import evaluate, short_side_of
from aicsd.evaluation.metrics import Metrics, metrics_from_confusion, to_json
from aicsd.evaluation.per_image import ImageCounts
from aicsd.models.inference import InferenceConfig, infer

__all__ = [
    "ImageCounts",
    "InferenceConfig",
    "Metrics",
    "evaluate",
    "infer",
    "metrics_from_confusion",
    "short_side_of",
    "to_json",
]
