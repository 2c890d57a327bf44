"""Counts of every image: they are those of the image alone, and the file gives them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_evaluate import Scenes, brightest, confusion_by_hand

from aicsd.data.wrappers import Subset
from aicsd.errors import UserError
from aicsd.evaluation import ImageCounts, evaluate


def counted(batch_size: int = 2) -> ImageCounts:
    counts = ImageCounts(Scenes().names, 3)
    evaluate(brightest(), Scenes(), batch_size=batch_size, per_image=counts)
    return counts


def test_counts_of_an_image_are_those_of_the_image_alone() -> None:
    matrices = counted(batch_size=3).matrices()
    assert matrices.shape == (7, 3, 3)
    assert np.array_equal(matrices.sum(axis=0), confusion_by_hand(brightest(), Scenes()))
    for index in (0, 3):
        scene = Scenes([Scenes().sizes[index]])
        scene.read = lambda _, index=index: Scenes().read(index)  # type: ignore[method-assign]
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
    with pytest.raises(UserError, match="holds no counts"):
        ImageCounts.load(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="holds no counts"):
        ImageCounts.load(path)
    counted().save(path)
    tensors = load_file(path)
    header = {"format": "1", "classes": "3", "images": '["0"]'}
    for changed, metadata in (
        (tensors, header),
        (tensors, {**header, "format": "7"}),
        (
            tensors | {"pair": tensors["pair"][:-1]},
            {**header, "images": '["a","b","c","d","e","f","g"]'},
        ),
        (tensors, {"format": "1"}),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(UserError, match=r"counts\.safetensors") as caught:
            ImageCounts.load(path)
        assert "\n" not in str(caught.value)


def test_a_part_of_a_split() -> None:
    part = Subset(Scenes(), 3)
    counts = ImageCounts(part.names, 3)
    metrics = evaluate(brightest(), part, per_image=counts)
    assert counts.matrices().sum(axis=0).tolist() == metrics.confusion
