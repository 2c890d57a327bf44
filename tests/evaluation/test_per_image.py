"""Counts of every image: they are those of the image alone, and the file gives them back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluate import Scenes, brightest, confusion_by_hand

from aicsd.data import Sample
from aicsd.data.wrappers import Subset
from aicsd.errors import UserError
from aicsd.evaluation import ImageCounts, evaluate
from aicsd.evaluation.per_image import HEADER_KEY
from aicsd.tensor_files import read_tensors, write_tensors


def counted(batch_size: int = 2) -> ImageCounts:
    counts = ImageCounts(Scenes().names, 3)
    evaluate(brightest(), Scenes(), batch_size=batch_size, per_image=counts)
    return counts


class OneScene(Scenes):
    """One of the scenes by itself."""

    def __init__(self, which: int) -> None:
        super().__init__([Scenes().sizes[which]])
        self.which = which

    def read(self, index: int) -> Sample:
        return Scenes().read(self.which)


def test_counts_of_an_image_are_those_of_the_image_alone() -> None:
    matrices = counted(batch_size=3).matrices()
    assert matrices.shape == (7, 3, 3)
    assert np.array_equal(matrices.sum(axis=0), confusion_by_hand(brightest(), Scenes()))
    for index in (0, 3):
        scene = OneScene(index)
        assert np.array_equal(matrices[index], confusion_by_hand(brightest(), scene))


def test_a_file_gives_them_back(tmp_path: Path) -> None:
    counts, path = counted(), tmp_path / "new" / "counts.safetensors"
    counts.save(path)
    again = ImageCounts.load(path)
    assert again.names == counts.names
    assert np.array_equal(again.matrices(), counts.matrices())
    assert path.stat().st_size < 1000  # 7 images of at most 9 pairs


def test_an_image_without_a_labelled_pixel_and_one_that_is_missing(tmp_path: Path) -> None:
    counts = ImageCounts(["a", "b", "c"], 256)
    matrix = torch.zeros(256, 256, dtype=torch.int64)
    counts.add(0, matrix)
    matrix[255, 255] = 2**32 - 1  # the largest pair and the largest count that the file holds
    counts.add(2, matrix)
    counts.save(tmp_path / "counts.safetensors")
    matrices = ImageCounts.load(tmp_path / "counts.safetensors").matrices()
    assert matrices.sum(axis=(1, 2)).tolist() == [0, 0, 2**32 - 1]
    assert matrices[2, 255, 255] == 2**32 - 1


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "counts.safetensors"
    with pytest.raises(UserError, match="not a readable safetensors file"):
        ImageCounts.load(path)
    counted().save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="its checksum is wrong"):
        ImageCounts.load(path)
    counted().save(path)
    tensors, text = read_tensors(path, HEADER_KEY)
    header = json.loads(text or "")
    for changed, facts in (
        (tensors, {**header, "images": ["0"]}),
        (tensors, {**header, "format": 7}),
        (tensors, {"format": 1}),
        (tensors, []),
        (tensors | {"pair": tensors["pair"][:-1].clone()}, header),
        (tensors, {**header, "classes": 1}),
    ):
        write_tensors(path, changed, HEADER_KEY, json.dumps(facts))
        with pytest.raises(UserError, match="holds no counts of images") as caught:
            ImageCounts.load(path)
        assert "\n" not in str(caught.value)


def test_a_part_of_a_split() -> None:
    part = Subset(Scenes(), 3)
    counts = ImageCounts(part.names, 3)
    metrics = evaluate(brightest(), part, per_image=counts)
    assert counts.matrices().sum(axis=0).tolist() == metrics.confusion
