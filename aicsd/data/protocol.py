"""Dataset protocol: samples with labels, and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aicsd.images import Color, UInt8Array

if TYPE_CHECKING:
    from torch import Tensor


class Classes(NamedTuple):
    """Class names by id, and the colour that pictures show each in."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]


class Sample(NamedTuple):
    """One image with its labels."""

    image: UInt8Array
    """(H, W, 3) RGB."""
    mask: UInt8Array
    """(H, W) class ids; 255 where there is no label."""
    maps: Tensor | None = None
    """(C, h, w) float32: cached teacher logits of the whole image."""


class SegDataset(Protocol):
    """A split of a dataset. ``read(i)`` gives the same sample each time, in any process.

    A class that inherits from this one needs ``classes``, ``names``, ``__len__`` and ``read``; its
    objects can be pickled, if loaders are to run in processes of their own.
    """

    classes: Classes
    names: list[str]
    """A name for every sample, unique in the split."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image; files override this to leave the pixels undecoded."""
        height, width = self.read(index).mask.shape
        return height, width

    @property
    def labelled(self) -> Sequence[int]:
        """Indices of the samples with labels."""
        return range(len(self))


class Splits(NamedTuple):
    """Images to train on, and images to validate on."""

    train: SegDataset
    val: SegDataset
