"""The cache of decoded images: the same batches, within the budget, whoever reads."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, RunCli
from safetensors.torch import load_file
from started import SERVER
from tiny_runs import NO_REPORT

from aicsd.data import Classes, Sample, SegDataset, memory, open_dataset
from aicsd.data.batches import plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.memory import CachedDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.errors import UserError

BYTES = 4 * 64 * 48
"""Bytes of one sample of the tiny dataset: three channels and the mask."""


class Counted(SegDataset):
    """Tells how often each sample was decoded."""

    def __init__(self, root: Path) -> None:
        self.dataset = open_dataset("folder", str(root), "train")
        self.classes, self.names = self.dataset.classes, self.dataset.names
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        self.reads.append(index)
        return self.dataset.read(index)


def small_budget(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """One megabyte is what ``samples`` of the tiny dataset need, and a little."""
    monkeypatch.setattr(memory, "MB", samples * BYTES + 100)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("samples", [3, 100])
def test_batches_are_those_without_a_cache(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int, samples: int
) -> None:
    small_budget(monkeypatch, samples)
    dataset = open_dataset("folder", str(tiny_folder), "train")
    augment = AugmentConfig(crop=40, jitter=0.5)
    config = DataConfig(batch_size=4, workers=workers, augment=augment)
    plan = plan_batches(len(dataset), config, seed=1, epochs=3)
    wanted = list(train_loader(dataset, config, plan))
    cached = CachedDataset(dataset, 1, shared=workers > 0)
    found = list(train_loader(cached, config, plan))
    assert len(found) == len(wanted) == 6
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


@pytest.mark.parametrize(("samples", "again"), [(3, [3, 4, 5, 6, 7]), (8, []), (100, [])])
def test_what_fits_is_decoded_once_and_the_rest_each_time(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, samples: int, again: list[int]
) -> None:
    small_budget(monkeypatch, samples)
    dataset = Counted(tiny_folder)
    cached = CachedDataset(dataset, 1, shared=False)
    assert cached.bytes == min(samples * BYTES + 100, 8 * BYTES)
    assert f"{min(samples, 8)} of 8 images" in str(cached)
    for expected in (list(range(8)), again, again):
        dataset.reads.clear()
        for index in range(8):
            sample = cached.read(index)
            wanted = dataset.dataset.read(index)
            assert np.array_equal(sample.image, wanted.image)
            assert np.array_equal(sample.mask, wanted.mask)
            assert sample.maps is wanted.maps is None
        assert dataset.reads == expected
    assert cached._used[0] == min(samples, 8) * BYTES <= cached.bytes


def test_a_small_sample_still_fits_beside_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(SegDataset):
        classes = Classes(("a",), ((0, 0, 0),))

        def __init__(self) -> None:
            self.names = ["0", "1", "2"]

        def __len__(self) -> int:
            return 3

        def read(self, index: int) -> Sample:
            side = (10, 20, 11)[index]
            return Sample(
                np.full((side, side, 3), index, np.uint8), np.full((side, side), 7, np.uint8)
            )

    monkeypatch.setattr(memory, "MB", 1000)
    cached = CachedDataset(Mixed(), 1, shared=False)
    for _ in range(2):
        assert [cached.read(index).image[0, 0, 0] for index in range(3)] == [0, 1, 2]
    assert np.frombuffer(cached._places, np.int64).reshape(3, 3)[:, 1].tolist() == [10, 0, 11]
    assert cached._used[0] == 4 * (100 + 121)


def test_nobody_can_change_what_is_kept(tiny_folder: Path) -> None:
    cached = CachedDataset(open_dataset("folder", str(tiny_folder), "train"), 1, shared=False)
    cached.read(0).image[:] = 0  # the first is the decoded one
    with pytest.raises(ValueError, match="read-only"):
        cached.read(0).image[:] = 0
    assert cached.read(0).image.any()


_shared: CachedDataset


def _receive(dataset: CachedDataset) -> None:
    global _shared
    _shared = dataset


def _sum_in_worker(index: int) -> int:
    return int(_shared.read(index).image.sum())


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), SERVER])
def test_processes_share_what_one_of_them_decoded(tiny_folder: Path, context: BaseContext) -> None:
    """Forked with the dataset, or sent a pickle of it."""
    dataset = open_dataset("folder", str(tiny_folder), "train")
    cached = CachedDataset(dataset, 1, shared=True)
    with ProcessPoolExecutor(2, context, _receive, (cached,)) as pool:
        sums = list(pool.map(_sum_in_worker, range(8)))
    for path in tiny_folder.rglob("train/*.png"):
        path.unlink()
    assert [int(cached.read(index).image.sum()) for index in range(8)] == sums


def test_too_little_shared_memory_is_told(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("folder", str(tiny_folder), "train")
    monkeypatch.setattr(memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 50_000}))
    with pytest.raises(UserError, match=r"data\.cache_mb takes .* lower it"):
        CachedDataset(dataset, 1, shared=True)
    assert CachedDataset(dataset, 1, shared=False).bytes == 8 * BYTES


def test_a_run_with_a_cache_is_the_same_run(
    tiny_folder: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    model = [part for key, value in TINY_MODEL.items() for part in (f"--model.{key}", value)]
    weights = []
    for megabytes in (0, 5):
        run = tmp_path / f"run{megabytes}"
        code, _, err = run_cli(
            "train", "--data.name", "folder", "--data.root", tiny_folder, "--run", run, *model,
            "--data.batch_size", 4, "--data.workers", 0, "--data.augment.crop", 32,
            "--data.cache_mb", megabytes, "--epochs", 2, "--accelerator", "cpu",
            *NO_REPORT,
        )  # fmt: skip
        assert code == 0
        assert ("8 of 8 images" in err) == (megabytes > 0)
        weights.append(load_file(run / "model.safetensors"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.cache_mb is -1"):
        DataConfig(cache_mb=-1)
