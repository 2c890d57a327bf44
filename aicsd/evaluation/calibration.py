"""Calibration: agreement between the confidence of a network and its accuracy."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aicsd.evaluation.metrics import Metrics
from aicsd.models import Segmenter
from aicsd.models.bands import class_probabilities, has_bands, probability_bands
from aicsd.models.inference import InferenceConfig
from aicsd.models.maps import resize
from aicsd.models.views import is_single_pass

BINS = 15
"""Bins of equal width over the confidence, as in the paper."""


@torch.no_grad()
def predict_confidence(
    model: Segmenter, images: Tensor, config: InferenceConfig | None, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Class ids of images, and the probability of each; the ids are those of ``infer``.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) uint8 RGB on the model's device.
        config: single scale, not mirrored and whole without it.
        batch_size: views of an image that share a forward pass.

    Returns:
        (B, H, W) int64 and (B, H, W) float in [0, 1].
    """
    size = (images.shape[-2], images.shape[-1])
    config = (config or InferenceConfig()).of(model, size)
    best = [_most_probable(model, image, config, batch_size, size) for image in images.split(1)]
    return torch.cat([ids for ids, _ in best]), torch.cat([sure for _, sure in best])


def _most_probable(
    model: Segmenter, image: Tensor, config: InferenceConfig, batch_size: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    if is_single_pass(image, config):
        # from logits, as without the confidence: probabilities round two large ones to equal ones
        logits = resize(model(image).logits, size, model.align_corners).float()
        return logits.max(dim=1).indices, logits.softmax(dim=1).amax(dim=1)
    if has_bands(size[0], config):
        bands = [maps for _, maps in probability_bands(model, image, config, batch_size)]
    else:
        bands = [class_probabilities(model, image, config, batch_size)]
    found = [maps.max(dim=1) for maps in bands]
    ids, sure = [one.indices for one in found], [one.values for one in found]
    return torch.cat(ids, dim=1), torch.cat(sure, dim=1)


def calibration_counts(
    predicted: Tensor, confidence: Tensor, mask: Tensor, num_classes: int
) -> Tensor:
    """Counts for :func:`add_calibration`; those of images add up to those of a dataset.

    Args:
        predicted: (B, H, W) class ids.
        confidence: (B, H, W) probability of the predicted class.
        mask: (B, H, W) uint8 class ids; what is not below C has no label.
        num_classes: C.

    Returns:
        (3, BINS) float64 on the CPU: labelled pixels, right ones, and the sum of their confidence.
    """
    labelled = mask < num_classes
    sure = confidence[labelled].cpu().double()  # a Mac's GPU has no float64
    right = (predicted == mask)[labelled].cpu().double()
    # bins are open below and closed above, as in the paper
    place = (sure * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    return torch.stack(
        [
            torch.bincount(place, weights, minlength=BINS)
            for weights in (torch.ones_like(sure), right, sure)
        ]
    )


def add_calibration(metrics: Metrics, counts: Tensor) -> Metrics:
    """``metrics`` with confidence and calibration error.

    The expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599, eq. 5) is the mean over
    the pixels of the distance between accuracy and confidence of their bin.

    Args:
        metrics: metrics of the same images.
        counts: (3, BINS) of :func:`calibration_counts`.
    """
    pixels, right, sure = counts
    total = pixels.sum()  # 0/0 = NaN: no pixel has a label
    return replace(
        metrics,
        confidence=float(sure.sum() / total),
        calibration_error=float((right - sure).abs().sum() / total),
    )
