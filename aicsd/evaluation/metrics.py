"""All metrics from one confusion matrix."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aicsd.types import IGNORE_INDEX


@dataclass(frozen=True)
class Metrics:
    """Fractions in [0, 1]; NaN where no pixel decides (shown as null in JSON).

    Args:
        miou: mean of the classes' IoU; a class in neither labels nor predictions is left out.
        pixel_accuracy: right pixels / labelled pixels.
        class_accuracy: mean over the labelled classes of right pixels / pixels of the class.
        fwiou: IoU weighted by the share of labelled pixels of each class.
        per_class_iou: by class name; NaN for a class in neither labels nor predictions.
        per_class_accuracy: right pixels / pixels of the class, by class name.
        images: number of evaluated images.
        confusion: (C, C) pixel counts, rows = label, columns = prediction.
        boundary_iou: mean of the classes' boundary IoU, if requested.
        per_class_boundary_iou: by class name, if requested.
        confidence: mean probability of the predicted class over the labelled pixels, if requested.
        calibration_error: expected calibration error, if requested.
    """

    miou: float
    pixel_accuracy: float
    class_accuracy: float
    fwiou: float
    per_class_iou: dict[str, float]
    per_class_accuracy: dict[str, float]
    images: int
    confusion: list[list[int]]
    boundary_iou: float | None = None
    per_class_boundary_iou: dict[str, float] | None = None
    confidence: float | None = None
    calibration_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with None for NaN, without metrics that were not requested."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return None if value != value else value

        return {key: plain(value) for key, value in asdict(self).items() if value is not None}


def to_json(values: dict[str, Any]) -> str:
    """Indented JSON in which a list of numbers, such as a row of a matrix, takes one line."""
    text = json.dumps(values, indent=1)
    # a list begins with a line break, which no text in JSON holds
    return re.sub(r"\[\n[\s\d,]+\]", lambda row: re.sub(r"\s+", "", row[0]), text) + "\n"


def confusion_counts(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 pixel counts, rows = label, columns = prediction; on the device of the inputs.

    Args:
        predicted: (B, H, W) class ids below C.
        mask: (B, H, W) uint8 class ids; what is not below C has no label.
        num_classes: C.
    """
    # unlabelled pixels are counted in rows of their own and left out: picking out the labelled ones
    # would take longer than all the counting
    pairs = mask.int() * num_classes + predicted.int()
    counts = torch.bincount(pairs.flatten(), minlength=(IGNORE_INDEX + 1) * num_classes)
    return counts.view(-1, num_classes)[:num_classes]


def metrics_from_confusion(matrix: Tensor, names: tuple[str, ...], images: int) -> Metrics:
    """Metrics of a confusion matrix.

    Args:
        matrix: (C, C) pixel counts, rows = label, columns = prediction.
        names: names of the C classes.
        images: number of counted images.
    """
    confusion = matrix.long().tolist()
    matrix = matrix.double()
    right = matrix.diagonal()
    labelled, predicted = matrix.sum(dim=1), matrix.sum(dim=0)
    iou = right / (labelled + predicted - right)  # 0/0 = NaN: the class occurs nowhere
    frequency = labelled / labelled.sum()
    present = labelled > 0
    return Metrics(
        miou=float(iou.nanmean()),
        pixel_accuracy=float(right.sum() / labelled.sum()),
        class_accuracy=float((right / labelled).nanmean()),
        fwiou=float((frequency * iou)[present].sum()) if bool(present.any()) else float("nan"),
        per_class_iou=dict(zip(names, iou.tolist(), strict=True)),
        per_class_accuracy=dict(zip(names, (right / labelled).tolist(), strict=True)),
        images=images,
        confusion=confusion,
    )


def add_boundary(metrics: Metrics, counts: Tensor) -> Metrics:
    """``metrics`` with the boundary IoU of (2, C) intersections and unions."""
    iou = counts[0].double() / counts[1].double()  # 0/0 = NaN: the class occurs nowhere
    names = metrics.per_class_iou
    return replace(
        metrics,
        boundary_iou=float(iou.nanmean()),
        per_class_boundary_iou=dict(zip(names, iou.tolist(), strict=True)),
    )
