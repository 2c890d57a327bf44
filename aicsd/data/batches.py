"""Samples of a training, their order, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aicsd.data.protocol import SegDataset
from aicsd.data.settings import DataConfig
from aicsd.data.wrappers import PartlyLabelled, Subset
from aicsd.errors import UserError


def training_images(dataset: SegDataset, config: DataConfig) -> SegDataset:
    """The part of a split that ``config`` trains on, with the labels that it may use."""
    if not config.train_images:
        return dataset
    part = PartlyLabelled if config.unlabelled_rest else Subset
    return part(dataset, config.train_images)


def epoch_indices(
    dataset: SegDataset, config: DataConfig, seed: int = 0, epoch: int = 0
) -> list[int]:
    """Samples of an epoch: each once, those with labels ``labelled_repeat`` times.

    With ``unlabelled_ratio`` it shows that many samples without labels for each view of one with
    labels, and takes them in turns from epoch to epoch: each is shown before one is shown again.
    """
    labelled = list(dataset.labelled)
    if not config.unlabelled_ratio or len(labelled) in (0, len(dataset)):
        return [*range(len(dataset)), *(labelled * (config.labelled_repeat - 1))]
    shown = labelled * config.labelled_repeat
    count = max(1, round(config.unlabelled_ratio * len(shown)))
    known = set(labelled)
    others = [index for index in range(len(dataset)) if index not in known]
    rounds = [divmod(epoch * count + place, len(others)) for place in range(count)]
    orders = {turn: epoch_order(seed, turn, len(others)) for turn in {turn for turn, _ in rounds}}
    return [*shown, *(others[orders[turn][place]] for turn, place in rounds)]


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which epoch ``epoch`` visits ``count`` samples."""
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return order


@dataclass(frozen=True)
class TrainBatches:
    """Keys of every batch from ``start`` to ``stop``, for one of ``world`` ranks.

    A key is an epoch and a number in it, of the ``count`` samples that it shows.

    An epoch has ``count // (batch_size * world)`` batches of equal size; which samples are left
    over changes with the epoch's order.
    """

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1

    @property
    def per_epoch(self) -> int:
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        last_epoch = -1
        order: list[int] = []
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != last_epoch:
                order, last_epoch = epoch_order(self.seed, epoch, self.count), epoch
            begin = (position * self.world + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size]]

    def __len__(self) -> int:
        return self.stop - self.start


def batch_names(
    dataset: SegDataset, config: DataConfig, batches: TrainBatches
) -> Iterator[list[str]]:
    """The names of the images of every batch."""
    last_epoch, indices = -1, list[int]()
    for keys in batches:
        (epoch,) = {epoch for epoch, _ in keys}
        if epoch != last_epoch:
            last_epoch, indices = epoch, epoch_indices(dataset, config, batches.seed, epoch)
        yield [dataset.names[indices[number]] for _, number in keys]


def plan_batches(
    count: int,
    config: DataConfig,
    seed: int,
    epochs: int,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
) -> TrainBatches:
    """The batches of a whole run over ``count`` images, in whole steps of ``accumulate`` batches.

    Raises:
        UserError: not enough images for one batch on every device, or for one step.
    """
    plan = TrainBatches(count, config.batch_size, seed, 0, 0, rank, world)
    if plan.per_epoch < 1:
        raise UserError(
            f"{count} training images make no batch of {config.batch_size} on each of {world} "
            "devices; lower data.batch_size"
        )
    steps = epochs * plan.per_epoch // accumulate
    if steps < 1:
        raise UserError(
            f"{epochs} epochs of {plan.per_epoch} batches make no step of optimizer.accumulate = "
            f"{accumulate} batches; lower it or train longer"
        )
    return replace(plan, stop=steps * accumulate)
