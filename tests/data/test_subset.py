"""Training on a part of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from tiny_runs import NO_REPORT, lines, train_command

from aicsd.data import open_dataset
from aicsd.data.wrappers import PartlyLabelled, Subset
from aicsd.errors import UserError


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, list(range(10)))]
)
def test_samples_are_spread_over_the_split(count: int, expected: list[int]) -> None:
    whole = open_dataset("digits", None, "train", {"size": 32, "scenes": 10})
    part = Subset(whole, count)
    assert len(part) == count
    assert part.names == [whole.names[index] for index in expected]
    for number, index in enumerate(expected):
        assert np.array_equal(part.read(number).image, whole.read(index).image)
    with pytest.raises(UserError, match="11, but the split has 10"):
        Subset(whole, 11)


def test_the_rest_of_the_split_without_its_labels() -> None:
    whole = open_dataset("digits", None, "train", {"size": 32, "scenes": 10})
    part, labelled = PartlyLabelled(whole, 3), Subset(whole, 3)
    assert part.names == whole.names
    for index in range(10):
        sample, full = part.read(index), whole.read(index)
        assert np.array_equal(sample.image, full.image)
        assert part.size(index) == (32, 32)
        if index in labelled.indices:
            assert np.array_equal(sample.mask, full.mask)
        else:
            assert (sample.mask == 255).all()
            assert sample.mask.dtype == full.mask.dtype
    with pytest.raises(UserError, match="11, but the split has 10"):
        PartlyLabelled(whole, 11)


def test_a_run_on_few_labels_and_the_other_images(
    tiny_folder: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    command = train_command(
        tiny_folder, run, "--epochs", 1, "--data.unlabelled_rest", "true", *NO_REPORT
    )
    code, _, error = run_cli(*command)
    assert code == 2
    assert "data.unlabelled_rest needs data.train_images" in error
    assert run_cli(*command, "--data.train_images", 2)[0] == 0
    steps = [line["step"] for line in lines(run) if "loss" in line]
    assert steps == [1, 2]  # both batches of 4, of which 2 images have labels


def test_a_run_on_a_part(tiny_folder: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    command = train_command(tiny_folder, run, *NO_REPORT, "--epochs", 2, "--data.train_images", 4)
    assert run_cli(*command)[0] == 0
    steps = [line["step"] for line in lines(run) if "loss" in line]
    assert steps == [1, 2]  # one batch of 4 an epoch
    command[-1], command[command.index(str(run))] = "999", str(tmp_path / "other")
    code, _, error = run_cli(*command)
    assert code == 2
    assert "data.train_images is 999" in error
    assert not (tmp_path / "other").exists()
