"""Datasets: one file each. A new one is a file, and a line in ``aicsd.data.open.DATASETS``."""

from aicsd.data.check import Survey, check_dataset, check_splits, survey, survey_dataset
from aicsd.data.entry import DatasetEntry
from aicsd.data.open import DATASETS, open_dataset, open_images
from aicsd.data.protocol import Classes, Sample, SegDataset, Splits
from aicsd.data.splits import data_settings, open_splits

__all__ = [
    "DATASETS",
    "Classes",
    "DatasetEntry",
    "Sample",
    "SegDataset",
    "Splits",
    "Survey",
    "check_dataset",
    "check_splits",
    "data_settings",
    "open_dataset",
    "open_images",
    "open_splits",
    "survey",
    "survey_dataset",
]
