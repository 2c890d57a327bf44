"""Entries of a report: networks that differ in the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from aicsd.benchmark.statistics import Gain
from aicsd.models import Segmenter
from aicsd.visualization.runs import Network


@dataclass(frozen=True)
class ReportEntry:
    """Networks of one setting.

    Args:
        title: short and unique.
        networks: one a seed, in the order of the seeds.
        gain: over the student alone of the same settings, paired by seed; None without one.
        pairs: network and the one of its seed that it is compared with.
    """

    title: str
    networks: tuple[Network, ...]
    gain: Gain | None = None
    pairs: tuple[tuple[Network, Network], ...] = ()

    @property
    def is_teacher(self) -> bool:
        return self.networks[0].is_teacher

    @property
    def is_alone(self) -> bool:
        """Whether these are students that learned from labels only."""
        run = self.networks[0].run
        return run is not None and not self.is_teacher and run.is_alone

    @property
    def of_other_teacher(self) -> bool:
        """Whether these were distilled from another teacher than the one shown."""
        return any(net.of_other_teacher for net in self.networks)

    @property
    def is_measured(self) -> bool:
        return any(net.metrics for net in self.networks)

    @property
    def shown(self) -> Network:
        """The network whose pictures represent all seeds: the first whose model exists."""
        return next((net for net in self.networks if net.model is not None), self.networks[0])

    @property
    def model(self) -> Segmenter | None:
        return self.shown.model

    def values(self, key: str) -> list[float]:
        """A metric of every network that has it."""
        return [v for net in self.networks if (v := net.metrics.get(key)) is not None]

    def mean(self, key: str) -> float | None:
        """Mean of a metric over the seeds."""
        values = self.values(key)
        return mean(values) if values else None

    def class_iou(self, name: str) -> float | None:
        """Mean IoU of a class over the seeds in which it occurs."""
        found = [_class_iou(net, name) for net in self.networks]
        values = [value for value in found if value is not None]
        return mean(values) if values else None

    def class_gain(self, name: str) -> float | None:
        """Mean over the pairs of the difference in a class."""
        found = [(_class_iou(one, name), _class_iou(two, name)) for one, two in self.pairs]
        values = [one - two for one, two in found if one is not None and two is not None]
        return mean(values) if values else None


def each_alone(networks: Sequence[Network]) -> list[ReportEntry]:
    """Every network as its own entry, compared with nothing."""
    return [ReportEntry(net.title, (net,)) for net in networks]


def _class_iou(network: Network, name: str) -> float | None:
    value: float | None = network.metrics.get("per_class_iou", {}).get(name)
    return None if value is None or value != value else value
