"""Loaders: one stream of batches, for any number of workers, ranks and restarts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aicsd.data.augment import augment
from aicsd.data.batches import TrainBatches, epoch_order, plan_batches
from aicsd.data.loaders import sample_loader, timed, train_loader
from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.errors import UserError
from aicsd.types import Batch

AUGMENT = AugmentConfig(crop=16, jitter=0.3)
CONFIG = DataConfig(batch_size=3, workers=0, augment=AUGMENT)


class Numbers(SegDataset):
    """Image and mask of sample i are full of i, noise aside."""

    classes = Classes(("a",), ((0, 0, 0),))

    def __init__(self, count: int = 11, broken: int | None = None) -> None:
        self.names = [str(number) for number in range(count)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        if index == self.broken:
            raise UserError(f"file {index}.png is broken")
        image = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Sample(image, np.full((20, 24), index, np.uint8))


def load(
    workers: int = 0, start: int = 0, stop: int = 7, seed: int = 5, data: Numbers | None = None
) -> Generator[Batch, None, None]:
    data = data or Numbers()
    batches = TrainBatches(len(data), 3, seed, start, stop)
    return train_loader(data, replace(CONFIG, workers=workers), batches)


def equal(a: Batch, b: Batch) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def ids(batch: Batch) -> list[int]:
    return batch.mask.long().masked_fill(~batch.valid, -1).flatten(1).amax(1).tolist()


def test_form_of_a_batch() -> None:
    batch = next(load())
    assert batch.image.shape == (3, 3, 16, 16)
    assert batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.mask.shape == batch.valid.shape == (3, 16, 16)
    assert (batch.mask.dtype, batch.valid.dtype) == (torch.uint8, torch.bool)
    there = batch.to("cpu")
    assert there.mask.dtype == torch.int64
    assert torch.equal(there.mask, batch.mask)


def test_a_batch_holds_the_augmented_samples_of_its_keys() -> None:
    data = Numbers()
    for step, batch in enumerate(load()):
        epoch, position = divmod(step, 3)
        indices = epoch_order(5, epoch, 11)[position * 3 : position * 3 + 3]
        assert ids(batch) == indices
        for row, index in enumerate(indices):
            crop = augment(data.read(index), np.random.default_rng((5, epoch, index)), AUGMENT)
            assert np.array_equal(batch.image[row].permute(1, 2, 0).numpy(), crop.image)
            assert np.array_equal(batch.mask[row].numpy(), crop.mask)
            assert np.array_equal(batch.valid[row].numpy(), crop.valid)
    assert step == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(workers: int) -> None:
    alone, shared = list(load(0)), list(load(workers))
    assert len(alone) == len(shared) == 7
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("start", range(8))
def test_a_resume_continues_the_stream(start: int) -> None:
    full, rest = list(load()), list(load(start=start))
    assert len(rest) == 7 - start
    assert all(equal(a, b) for a, b in zip(full[start:], rest, strict=True))


def test_a_resume_with_workers_continues_the_stream() -> None:
    full, rest = list(load()), list(load(workers=2, start=4))
    assert all(equal(a, b) for a, b in zip(full[4:], rest, strict=True))


def test_another_seed_gives_another_stream() -> None:
    a, b = list(load(seed=5)), list(load(seed=6))
    assert [ids(batch) for batch in a] != [ids(batch) for batch in b]
    assert not any(equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_same_sample_looks_different_in_another_epoch() -> None:
    data = Numbers(count=3)
    seen = {
        tuple(sorted(batch.image[row].numpy().tobytes() for row in range(3)))
        for batch in load(data=data, stop=6)
    }
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("count", "batch_size", "world"), [(11, 3, 1), (12, 3, 2), (17, 2, 3), (6, 6, 1), (8, 2, 4)]
)
def test_an_epoch_visits_each_sample_at_most_once(count: int, batch_size: int, world: int) -> None:
    per_epoch = count // (batch_size * world)
    ranks = [
        list(TrainBatches(count, batch_size, 0, 0, 5 * per_epoch, rank, world))
        for rank in range(world)
    ]
    visited: set[int] = set()
    for epoch in range(5):
        keys = [
            key
            for batches in ranks
            for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch]
            for key in batch
        ]
        assert {key[0] for key in keys} == {epoch}
        indices = [key[1] for key in keys]
        assert len(indices) == len(set(indices)) == per_epoch * batch_size * world
        assert set(indices) <= set(range(count))
        visited |= set(indices)
    assert visited == set(range(count))
    for batches in ranks:
        assert all(len(batch) == batch_size for batch in batches)


def test_ranks_together_visit_what_one_rank_with_larger_batches_does() -> None:
    alone = list(TrainBatches(16, 4, 1, 0, 8))
    pairs = zip(*(TrainBatches(16, 2, 1, 0, 8, rank, 2) for rank in range(2)), strict=True)
    assert [a + b for a, b in pairs] == alone


def test_batches_know_their_length() -> None:
    for start in range(8):
        batches = TrainBatches(11, 3, 0, start, 7)
        assert len(batches) == len(list(batches)) == 7 - start


def test_order_is_a_permutation_that_changes() -> None:
    orders = {tuple(epoch_order(seed, epoch, 9)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert epoch_order(2, 3, 9) == epoch_order(2, 3, 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_arrives_as_the_one_line_it_is(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        list(load(workers, data=Numbers(broken=4)))
    assert str(caught.value) == "file 4.png is broken"
    with pytest.raises(UserError) as caught:
        list(sample_loader(Numbers(broken=4), workers))
    assert str(caught.value) == "file 4.png is broken"


def test_other_errors_of_a_sample_are_not_hidden() -> None:
    class Faulty(Numbers):
        def read(self, index: int) -> Sample:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(load(data=Faulty()))


def test_loading_leaves_the_random_state_of_torch_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(load())
    list(load(workers=1))
    list(sample_loader(Numbers()))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_samples_come_in_order_and_once_over_all_ranks(world: int, workers: int) -> None:
    data = Numbers()
    shares = [list(sample_loader(data, workers, rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for index, _ in share) == list(range(11))
    for rank, share in enumerate(shares):
        assert [index for index, _ in share] == list(range(rank, 11, world))
        for index, sample in share:
            assert np.array_equal(sample.image, data.read(index).image)
            assert np.array_equal(sample.mask, data.read(index).mask)


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "accumulate", "world", "stop"),
    [
        (11, 3, 4, 1, 1, 12),
        (11, 3, 5, 2, 1, 14),
        (11, 3, 1, 3, 1, 3),
        (16, 2, 3, 1, 2, 12),
        (16, 2, 3, 5, 4, 5),
    ],
)
def test_a_plan_has_whole_steps(
    count: int, batch_size: int, epochs: int, accumulate: int, world: int, stop: int
) -> None:
    config = replace(CONFIG, batch_size=batch_size)
    plan = plan_batches(count, config, 9, epochs, accumulate, world - 1, world)
    assert (plan.start, plan.stop, plan.seed) == (0, stop, 9)
    assert (plan.rank, plan.world) == (world - 1, world)
    assert len(list(plan)) == stop


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 1, 1, 0, 1), ["2 training images", "batch of 3", "data.batch_size"]),
        ((11, 1, 1, 0, 4), ["11 training images", "4", "data.batch_size"]),
        ((11, 1, 4, 0, 1), ["1 epochs", "3 batches", "optimizer.accumulate", "4"]),
    ],
)
def test_too_few_images_are_refused(arguments: tuple[int, ...], words: list[str]) -> None:
    count, epochs, accumulate, rank, world = arguments
    with pytest.raises(UserError) as caught:
        plan_batches(count, CONFIG, 0, epochs, accumulate, rank, world)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"workers": -1}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(change))}"):
        DataConfig(**change)


def test_timed_passes_everything_on() -> None:
    items = list(timed(iter("abc")))
    assert [item for item, _ in items] == ["a", "b", "c"]
    assert all(seconds >= 0 for _, seconds in items)


def test_the_stream_is_read_lazily() -> None:
    reads: list[int] = []

    class Counting(Numbers):
        def read(self, index: int) -> Sample:
            reads.append(index)
            return super().read(index)

    next(load(data=Counting(), stop=10**6))
    assert reads == epoch_order(5, 0, 11)[:3]


LEFT_EARLY = """
import sys
sys.path.insert(0, {folder!r})
from test_loaders import load
batches = load(workers=2)
next(batches)
sys.exit(3)
"""


def test_a_loop_that_is_left_early_does_not_hang_at_exit() -> None:
    script = LEFT_EARLY.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        # torch warns where a machine has fewer cores than there are workers
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert not done.stderr


def test_workers_obey_a_sigterm_of_their_parent_only() -> None:
    alone = list(load())
    before = set(multiprocessing.active_children())
    batches = load(workers=2)
    shared = [next(batches), next(batches)]  # one of each: now both are up
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    shared += batches
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))
    batches = load(workers=1)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    batches.close()


def test_an_error_ends_the_workers_at_once() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError) as caught:
        list(load(workers=2, data=Numbers(broken=4)))
    assert caught.tb is not None
    assert set(multiprocessing.active_children()) <= before


def test_closing_the_stream_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    batches = load(workers=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) <= before


# the troubles of a machine


class Deadly(Numbers):
    """A process that reads sample 5 is killed, as the kernel does for want of memory."""

    def read(self, index: int) -> Sample:
        if index == 5 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_killed_worker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch looks after its workers every 5 seconds
    wait = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.2,))
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(UserError, match="was ended from outside, most likely because memory ran"):
        for _ in sample_loader(Deadly(), workers=2):
            pass
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_too_few_open_files_are_one_line() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 30, limits[1]))
    try:
        with pytest.raises(UserError, match="too many open files for 4 processes"):
            sample_loader(Numbers(), workers=4)
        assert len(list(sample_loader(Numbers()))) == len(Numbers())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
