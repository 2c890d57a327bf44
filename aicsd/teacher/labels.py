"""Unlabelled validation images with the teacher's predictions as labels."""

from __future__ import annotations

from aicsd.data.protocol import Sample, SegDataset
from aicsd.images import UInt8Array
from aicsd.messages import say
from aicsd.models import predict_ids
from aicsd.teacher.teacher import Teacher


class TeacherLabelled:
    """A dataset whose masks are the classes that a teacher finds.

    Args:
        dataset: images; their masks are ignored.
        teacher: on its device; each image is passed once, here, in windows where memory is small.
    """

    labels_by = "teacher"
    """Source of the labels, for the result of a run."""

    def __init__(self, dataset: SegDataset, teacher: Teacher) -> None:
        self.dataset = dataset
        self.classes, self.names = dataset.classes, dataset.names
        self.labelled = list(range(len(dataset)))
        images = (dataset.read(index).image for index in range(len(dataset)))
        self._masks: list[UInt8Array] = [
            predict_ids(teacher.model, image, cut=say) for image in images
        ]

    def __len__(self) -> int:
        return len(self._masks)

    def read(self, index: int) -> Sample:
        return self.dataset.read(index)._replace(mask=self._masks[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index)
