"""Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562), for every class of a semantic mask."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from aicsd.images import UInt8Array
from aicsd.types import IGNORE_INDEX

Counts = npt.NDArray[np.int64]
DILATION = 0.02
"""Width of the boundary as a part of the image's diagonal, as in the paper."""


def boundary_counts(predicted: UInt8Array, mask: UInt8Array, num_classes: int) -> Counts:
    """Pixels in the intersection and in the union of the boundary regions, for every class.

    The boundary region of a class are its labelled pixels within d of a labelled pixel that is not
    of the class, d = 2 % of the image's diagonal and at least 1 pixel; beyond the image nothing is
    of the class. The border between unlabelled pixels and a class is not a contour: VOC has a band
    of them along every object, and counting its edges, which labels and prediction share, would
    hide how far the predicted contour is off.

    Args:
        predicted: (H, W) class ids.
        mask: (H, W) class ids, 255 where there is no label.
        num_classes: C.

    Returns:
        (2, C) int64: intersections, unions. Sums over images give the boundary IoU of a dataset.
    """
    unlabelled = mask == IGNORE_INDEX
    distance = max(1, round(DILATION * math.hypot(*mask.shape)))
    counts = np.zeros((2, num_classes), np.int64)
    for class_id in range(num_classes):
        ours = boundary_region(predicted == class_id, unlabelled, distance)
        theirs = boundary_region(mask == class_id, unlabelled, distance)
        counts[:, class_id] = (ours & theirs).sum(), (ours | theirs).sum()
    return counts


def boundary_region(
    area: npt.NDArray[np.bool_], unlabelled: npt.NDArray[np.bool_], distance: int
) -> npt.NDArray[np.bool_]:
    """(H, W) bool -> the labelled pixels of ``area`` within ``distance`` steps to its outside.

    A step goes to one of the 8 neighbours. Unlabelled pixels are neither inside nor outside.
    """
    if not area.any():
        return area
    # zeros around the image, as in the official tool: its border is a contour too
    inside = (area | unlabelled).astype(np.uint8)
    padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    region: npt.NDArray[np.bool_] = area & ~unlabelled & (inner == 0)
    return region
