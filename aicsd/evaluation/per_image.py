"""Confusion counts of every image of a split, for statistics over images.

The file is small: only pairs of classes that occur in an image are kept, 6 bytes each. The 101
images and 11 classes of CamVid's validation split take some 30 kB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from aicsd.errors import UserError, one_line
from aicsd.tensor_files import read_tensors, write_tensors

FORMAT = 1
HEADER_KEY = "aicsd_image_counts"
Counts = NDArray[np.int64]


class ImageCounts:
    """One confusion matrix an image, with the pairs of classes that occur.

    Args:
        names: names of the images of the split, in its order.
        classes: their number, C, at most 256.
    """

    def __init__(self, names: Sequence[str], classes: int) -> None:
        self.names, self.classes = list(names), classes
        self._pairs: dict[int, Counts] = {}
        self._counts: dict[int, Counts] = {}

    def add(self, index: int, matrix: Tensor) -> None:
        """Keep the counts of an image.

        Args:
            index: index of the image in the split.
            matrix: (C, C) pixel counts, rows = label, columns = prediction.
        """
        flat = matrix.cpu().numpy().reshape(-1)
        self._pairs[index] = np.flatnonzero(flat)
        self._counts[index] = flat[self._pairs[index]]

    def gather(self) -> None:
        """Give every process of a distributed run the images of all of them."""
        if dist.is_initialized():
            found: list[tuple[dict[int, Counts], dict[int, Counts]] | None]
            found = [None] * dist.get_world_size()
            dist.all_gather_object(found, (self._pairs, self._counts))
            for held in found:
                assert held is not None
                self._pairs |= held[0]
                self._counts |= held[1]

    def matrices(self) -> Counts:
        """(N, C, C) pixel counts of all images, zeros for one that was not added."""
        matrices = np.zeros((len(self.names), self.classes**2), np.int64)
        for index, pairs in self._pairs.items():
            matrices[index, pairs] = self._counts[index]
        return matrices.reshape(-1, self.classes, self.classes)

    def save(self, path: Path) -> None:
        """Write a safetensors file; an existing file is replaced.

        Raises:
            UserError: the file cannot be written.
        """
        order = range(len(self.names))
        none = np.zeros(0, np.int64)
        pairs = [self._pairs.get(index, none) for index in order]
        counts = [self._counts.get(index, none) for index in order]
        arrays: dict[str, NDArray[Any]] = {
            "start": np.cumsum([0, *map(len, pairs)]).astype(np.uint32),
            "pair": np.concatenate([none, *pairs]).astype(np.uint16),
            "count": np.concatenate([none, *counts]).astype(np.uint32),
        }
        header = {"format": FORMAT, "classes": self.classes, "images": self.names}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(path, tensors, HEADER_KEY, json.dumps(header))

    @classmethod
    def load(cls, path: Path) -> ImageCounts:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: no such file, or another one.
        """
        tensors, text = read_tensors(path, HEADER_KEY)
        try:
            header = json.loads(text or "{}")
            if header.get("format") != FORMAT:
                raise ValueError(f"format {header.get('format')}, not {FORMAT}")
            found = cls(list(map(str, header["images"])), int(header["classes"]))
            start, pair, count = (
                tensors[name].numpy().astype(np.int64) for name in ("start", "pair", "count")
            )
            sound = (
                len(start) == len(found.names) + 1
                and (np.diff(start) >= 0).all()
                and start[0] == 0
                and start[-1] == len(pair) == len(count)
                and (pair < found.classes**2).all()
            )
            if not sound:
                raise ValueError("its parts do not fit together")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = one_line(error)
            raise UserError(f"{path} holds no counts of images: {reason}") from error
        for index in range(len(found.names)):
            part = slice(start[index], start[index + 1])
            found._pairs[index], found._counts[index] = pair[part], count[part]
        return found
