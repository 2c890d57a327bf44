"""The batches of a run: their plan, and those of any of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from lightning_fabric import Fabric

from aicsd.data.batches import TrainBatches, batch_names, epoch_indices, plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.protocol import SegDataset
from aicsd.run_config import FitConfig
from aicsd.types import Batch


def plan_run(config: FitConfig, train: SegDataset, rank: int = 0, world: int = 1) -> TrainBatches:
    """The batches of the whole run, for one of ``world`` processes.

    Raises:
        UserError: too few images for a batch of each process, or for a step.
    """
    return plan_batches(
        len(epoch_indices(train, config.data)),
        config.data,
        config.seed,
        config.epochs,
        config.optimizer.accumulate,
        rank,
        world,
    )


class RunBatches(NamedTuple):
    """Training batches of a run, in this process."""

    config: FitConfig
    data: SegDataset
    plan: TrainBatches
    """The batches of the whole run."""
    fabric: Fabric
    color: tuple[int, int, int]
    """Padding colour of crops, RGB."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.stop // self.config.optimizer.accumulate

    def load(self, start: int) -> Iterator[Batch]:
        """The batches from step ``start``, from 0, to the last one."""
        return self._load(self._plan(start, self.steps), self.config.data.workers)

    def again(self, step: int) -> list[tuple[Batch, list[str]]]:
        """The batches of one step, read again, each with the names of its images."""
        plan = self._plan(step, step + 1)
        names = batch_names(self.data, self.config.data, plan)
        return list(zip(self._load(plan, workers=0), names, strict=True))

    def _plan(self, start: int, stop: int) -> TrainBatches:
        parts = self.config.optimizer.accumulate
        return replace(self.plan, start=start * parts, stop=stop * parts)

    def _load(self, plan: TrainBatches, workers: int) -> Iterator[Batch]:
        return train_loader(
            self.data,
            replace(self.config.data, workers=workers),
            plan,
            pin_memory=self.fabric.device.type == "cuda",
            protocol=self.config.protocol,
            color=self.color,
        )
