"""Names that moved to ``aicsd.images``, ``protocol``, ``file_dataset`` and ``wrappers``."""

from aicsd.data.file_dataset import FileDataset, MasksWithheldError, Pair
from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.data.wrappers import PartlyLabelled, Subset
from aicsd.images import (
    IMAGE_SUFFIXES,
    ORIENTATION_TAG,
    Color,
    UInt8Array,
    list_images,
    read_image,
    read_mask,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "ORIENTATION_TAG",
    "Classes",
    "Color",
    "FileDataset",
    "MasksWithheldError",
    "Pair",
    "PartlyLabelled",
    "Sample",
    "SegDataset",
    "Subset",
    "UInt8Array",
    "list_images",
    "read_image",
    "read_mask",
]
