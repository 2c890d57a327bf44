"""Whether an exported file computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from aicsd.errors import UserError, one_line
from aicsd.exporting.graph import ExportGraph, smallest_side
from aicsd.formats import Format
from aicsd.formats.base import Images
from aicsd.models import Segmenter

SHAPES = ((1, 64, 64), (3, 97, 131), (2, 33, 250), (1, 224, 160))
"""(B, H, W) of the inputs that are compared; none is the traced one, some are odd."""
ONE_SIZE_IMAGES = 3
CALIBRATION_IMAGES = 4
SMALLEST_INT8_AGREEMENT = 0.5
LARGEST_ERROR = 1e-3
SMALLEST_AGREEMENT = 0.999


class Parity(NamedTuple):
    """Largest differences between a file and PyTorch, over all of ``SHAPES``."""

    error: float | None
    """Largest difference of a logit, relative to the range of the logits; 0 for labels. None where
    the file cannot be run on this machine, and only its structure was checked."""
    agreement: float | None
    """Part of the pixels with the same label; None where the file cannot be run here."""
    int8: float | None = None
    """Part of the pixels of a few calibration images with the same label in float and INT8."""


@torch.no_grad()
def compare(
    graph: ExportGraph,
    path: Path,
    written: Format,
    model: Segmenter,
    size: tuple[int, int] | None = None,
) -> Parity:
    """Run the file of a graph, in float, on noise of several sizes.

    Args:
        graph: exported graph.
        path: the file.
        written: its format.
        model: for the sizes that it takes.
        size: (H, W) of a file that takes one image of one size.

    Raises:
        UserError: a file that the runtime does not take, a difference above ``LARGEST_ERROR`` or
            labels that differ on more than 1 - ``SMALLEST_AGREEMENT`` of the pixels.
    """
    try:
        run = (written.trusted or written.read)(path, torch.get_num_threads()).run
    except UserError as refused:
        reason = one_line(refused.__cause__ or refused)
        raise UserError(
            f"{written.title} does not run this network: {reason}; nothing was written. Try "
            "another format"
        ) from refused
    rng = np.random.default_rng(0)
    error, same, pixels = 0.0, 0, 0
    least = smallest_side(model)
    shapes = [
        (count, *model.input.fit((max(height, least), max(width, least))))
        for count, height, width in SHAPES
    ]
    for shape in [(1, *size)] * ONE_SIZE_IMAGES if size else shapes:
        images = rng.integers(0, 256, (*shape, 3), np.uint8)
        wanted = graph(torch.from_numpy(images)).numpy()
        found = run(images)
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise UserError(
                f"the exported file gives {found.dtype} {found.shape} for images {images.shape}, "
                f"PyTorch {wanted.dtype} {wanted.shape}; nothing was written"
            )
        if graph.output == "labels":
            equal = found == wanted
        else:
            error = max(error, float(np.abs(found - wanted).max() / np.ptp(wanted)))
            equal = found.argmax(axis=1) == wanted.argmax(axis=1)
        same, pixels = same + int(equal.sum()), pixels + equal.size
    agreement = same / pixels
    if not (error <= LARGEST_ERROR and agreement >= SMALLEST_AGREEMENT):
        raise UserError(
            f"the exported file differs from PyTorch by {error:.1e} of the range of the logits and "
            f"has {agreement:.2%} of the labels; nothing was written. Try another format"
        )
    return Parity(error, agreement)


def compare_int8(exact: Path, rounded: Path, written: Format, images: Iterator[Images]) -> float:
    """Part of the pixels with the same label in float and in INT8, on a few images.

    Raises:
        UserError: labels of which more than half differ: INT8 has gone wrong.
    """
    threads = torch.get_num_threads()
    runs = [written.read(path, threads).run for path in (exact, rounded)]
    same = pixels = 0
    for image in islice(images, CALIBRATION_IMAGES):
        ours, theirs = (
            found if found.ndim == 3 else found.argmax(axis=1)
            for found in (run(image) for run in runs)
        )
        same, pixels = same + int((ours == theirs).sum()), pixels + ours.size
    if same < SMALLEST_INT8_AGREEMENT * pixels:
        raise UserError(
            f"the INT8 file has {same / pixels:.2%} of the labels of the float file on calibration "
            "images; nothing was written. Try another format"
        )
    return same / pixels
