"""Images without labels: the split ``unlabelled``, alone and joined to a labelled one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RunCli, write_folder
from tiny_models import save_tiny_model
from tiny_runs import NO_REPORT, distill_command, same_weights, train_lines

from aicsd.data import open_dataset, open_images, survey
from aicsd.data.batches import epoch_indices, plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.memory import CachedDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.data.wrappers import PartlyLabelled, Subset
from aicsd.errors import UserError


@pytest.fixture
def partly_labelled(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2, "unlabelled": 6})
    shutil.rmtree(root / "masks" / "unlabelled")
    return root


def test_an_unlabelled_image_has_its_pixels_and_no_label(partly_labelled: Path) -> None:
    unlabelled = open_dataset("folder", str(partly_labelled), "unlabelled")
    assert len(unlabelled) == 6
    image, mask, _ = unlabelled.read(2)
    assert image.std() > 0
    assert mask.shape == image.shape[:2]
    assert np.unique(mask).tolist() == [255]


def test_plus_joins_splits_in_order(partly_labelled: Path) -> None:
    root = str(partly_labelled)
    joined = open_dataset("folder", root, "train+unlabelled")
    assert joined.names[0] == "train/000"
    assert joined.names[-1] == "unlabelled/005"
    assert len(set(joined.names)) == len(joined) == 10
    alone = open_dataset("folder", root, "train")
    assert all(np.array_equal(joined.read(n).mask, alone.read(n).mask) for n in range(4))
    assert [np.unique(joined.read(n).mask).tolist() for n in (4, 9)] == [[255], [255]]
    assert len(open_images("folder", root, "train+unlabelled")) == 10
    with pytest.raises(UserError, match=r"no folder .*other"):
        open_dataset("folder", root, "train+other")


def test_check_reads_unlabelled_images(partly_labelled: Path) -> None:
    (partly_labelled / "images" / "unlabelled" / "003.png").write_bytes(b"no image")
    found = survey("folder", str(partly_labelled), "train+unlabelled")
    assert found.images == 10
    assert len(found.problems) == 1
    assert "003.png" in found.problems[0]


def test_a_student_learns_from_the_teacher_alone(
    partly_labelled: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    flags = ("--method", "kd", "--data.train_split", "unlabelled", "--epochs", 12,
             "--optimizer.lr", 0.01, "--val_every", 0, *NO_REPORT)  # fmt: skip
    for run, weight in (("labels", 1), ("teacher_only", 0)):
        command = distill_command(partly_labelled, teacher, tmp_path / run, *flags)
        code, _, error = run_cli(*command, "--terms.cross_entropy.weight", weight)
        assert code == 0, error
    lines = train_lines(tmp_path / "labels")
    assert all(line["loss/cross_entropy"] == 0 for line in lines)
    assert lines[-1]["loss/pixel_kd"] < 0.7 * lines[0]["loss/pixel_kd"]
    assert same_weights(tmp_path / "labels", tmp_path / "teacher_only")


# more of those with labels


def test_an_epoch_shows_labelled_images_several_times(partly_labelled: Path) -> None:
    thrice = DataConfig(labelled_repeat=3)
    root = str(partly_labelled)
    joined = open_dataset("folder", root, "train+unlabelled")
    assert epoch_indices(joined, DataConfig()) == list(range(10))
    again = 2 * [0, 1, 2, 3]
    assert epoch_indices(joined, thrice) == [*range(10), *again]
    assert epoch_indices(CachedDataset(joined, 1, shared=False), thrice) == [*range(10), *again]
    # every second image: 0 and 2 of the labelled ones
    assert epoch_indices(Subset(joined, 5), thrice) == [*range(5), 0, 1, 0, 1]
    assert epoch_indices(PartlyLabelled(joined, 5), thrice) == [*range(10), 0, 2, 0, 2]
    labelled = open_dataset("folder", root, "train")
    assert epoch_indices(labelled, thrice) == 3 * [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"data\.labelled_repeat is 0; it must be 1 or more"):
        DataConfig(labelled_repeat=0)


def test_an_image_shown_again_is_augmented_anew(partly_labelled: Path) -> None:
    joined = open_dataset("folder", str(partly_labelled), "train+unlabelled")
    config = DataConfig(
        batch_size=9, workers=0, labelled_repeat=3, augment=AugmentConfig(crop=32, jitter=0.5)
    )
    plan = plan_batches(len(epoch_indices(joined, config)), config, seed=0, epochs=1)
    batches = list(train_loader(joined, config, plan))
    images = torch.cat([batch.image for batch in batches])
    masks = torch.cat([batch.mask for batch in batches])
    assert len(images) == 18
    assert sum(bool((mask != 255).any()) for mask in masks) == 3 * 4
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == 18


def test_a_run_with_repeated_labels(partly_labelled: Path, tmp_path: Path, run_cli: RunCli) -> None:
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    flags = ("--data.train_split", "train+unlabelled", "--data.labelled_repeat", 3, "--epochs", 1,
             *NO_REPORT)  # fmt: skip
    run = tmp_path / "run"
    command = distill_command(partly_labelled, teacher, run, *flags)
    code, _, error = run_cli(*command, "--teacher_cache", tmp_path / "cache")
    assert code == 0, error
    assert "teacher cache: 10 images" in error  # each once
    assert [line["step"] for line in train_lines(run)] == [1, 2, 3, 4]  # 18 samples, 4 a step
