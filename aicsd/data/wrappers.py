"""Parts of a dataset."""

from __future__ import annotations

import numpy as np

from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX


def spread(count: int, length: int) -> list[int]:
    """``count`` indices, spread evenly over ``length``."""
    return [index * length // count for index in range(count)]


class Subset:
    """``count`` samples of a dataset, spread evenly over it.

    Raises:
        UserError: more samples than there are.
    """

    def __init__(self, dataset: SegDataset, count: int) -> None:
        if count > len(dataset):
            raise UserError(
                f"data.train_images is {count}, but the split has {len(dataset)} images"
            )
        self.dataset = dataset
        self.indices = spread(count, len(dataset))
        self.classes = dataset.classes
        self.names = [dataset.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.dataset.read(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(self.indices[index])

    @property
    def labelled(self) -> list[int]:
        labelled = set(self.dataset.labelled)
        return [place for place, index in enumerate(self.indices) if index in labelled]


class PartlyLabelled:
    """A dataset of which the ``count`` samples of ``Subset`` keep their labels, and no other.

    Raises:
        UserError: more samples than there are.
    """

    def __init__(self, dataset: SegDataset, count: int) -> None:
        self.dataset = dataset
        self.classes = dataset.classes
        self.names = dataset.names
        self._kept = frozenset(Subset(dataset, count).indices)
        self.labelled = [index for index in dataset.labelled if index in self._kept]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        sample = self.dataset.read(index)
        if index in self._kept:
            return sample
        return sample._replace(mask=np.full_like(sample.mask, IGNORE_INDEX))

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index)


class WithPhotos:
    """A dataset, and behind it photos without labels.

    Args:
        dataset: comes first.
        photos: photos of the same classes.
    """

    def __init__(self, dataset: SegDataset, photos: SegDataset) -> None:
        self.dataset, self.photos = dataset, photos
        self.classes = dataset.classes
        self.names = [*dataset.names, *(f"unlabelled/{name}" for name in photos.names)]
        self.labelled = list(dataset.labelled)
        self.notes = list(getattr(dataset, "notes", []))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        dataset, place = self._place(index)
        return dataset.read(place)

    def size(self, index: int) -> tuple[int, int]:
        dataset, place = self._place(index)
        return dataset.size(place)

    def _place(self, index: int) -> tuple[SegDataset, int]:
        first = len(self.dataset)
        return (self.dataset, index) if index < first else (self.photos, index - first)
