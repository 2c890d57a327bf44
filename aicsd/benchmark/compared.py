"""The networks of a report as entries, grouped and compared as in ``aicsd benchmark table``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aicsd.benchmark.statistics import Floats, Gain, Integers, gain_over, parts_of, resampled
from aicsd.benchmark.table import Group, MeasuredRun, group_runs, result_settings, val_images
from aicsd.errors import UserError
from aicsd.evaluation import ImageCounts
from aicsd.runs import RunFolder
from aicsd.visualization.entries import ReportEntry, each_alone
from aicsd.visualization.runs import Network

MOST_KEYS = 5
Pairs = tuple[tuple[Network, Network], ...]


def compare_networks(
    networks: Sequence[Network], *, remeasured: bool = False
) -> tuple[list[ReportEntry], list[str]]:
    """Group runs that differ in the seed alone; compare each with the student alone, by seed.

    Args:
        networks: teacher first.
        remeasured: whether their metrics are new, on the same images, in place of the runs' own.

    Returns:
        Settings, in the order of the networks; and why nothing is compared, where it is not.
    """
    students = [net for net in networks if not net.is_teacher and net.run is not None]
    try:
        held = [_measured(net) for net in students]
        groups = group_runs(held, same_images=remeasured)
    except UserError as error:
        return each_alone(networks), [f"Runs are not grouped or compared: {error}."]
    network_of = {id(run): net for run, net in zip(held, students, strict=True)}
    titles = _titles(groups, network_of)
    entries = each_alone([net for net in networks if net not in students])
    for group, title in zip(groups, titles, strict=True):
        own = tuple(network_of[id(run)] for run in group.runs)
        base = _baseline(group, groups)
        pairs = () if base is None else _pairs(group, base, network_of)
        gain = None
        if pairs:
            to = next(t for other, t in zip(groups, titles, strict=True) if other is base)
            gain = _gain(to, pairs, counts=not remeasured)
        entries.append(ReportEntry(title, own, gain, pairs))
    return entries, _notes(groups, entries[-len(groups) :])


def _baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The baseline of the table; otherwise the only student alone, with any settings."""
    alone = [other for other in groups if other.is_alone]
    if group.is_alone or group.baseline is not None:
        return group.baseline
    return alone[0] if len(alone) == 1 else None


def _notes(groups: Sequence[Group], entries: Sequence[ReportEntry]) -> list[str]:
    """A line where a difference is not of the method alone, or is not there."""
    alone = [group for group in groups if group.is_alone]
    notes = []
    for group, entry in zip(groups, entries, strict=True):
        if not alone or group.is_alone or group.baseline is not None:
            continue
        own, other = group.without_method, alone[0].without_method
        keys = [key for key in {**own, **other} if own.get(key) != other.get(key)]
        listed = ", ".join(keys[:MOST_KEYS]) + (", ..." if len(keys) > MOST_KEYS else "")
        if entry.gain is not None:
            notes.append(
                f"{entry.title} differs from {entry.gain.to} in more than the method "
                f"({listed}): its difference is that of all of it."
            )
        else:
            reason = f"their settings differ too ({listed})" if keys else "no seed is in both"
            notes.append(f"{entry.title} is not compared with the student alone: {reason}.")
    return notes


def _measured(network: Network) -> MeasuredRun:
    run = network.run
    assert run is not None
    settings, metrics = result_settings(run.settings), network.metrics
    images = val_images(RunFolder(run.path))
    return MeasuredRun(run.path, run.config["seed"], settings, metrics, run.is_alone, images)


def _titles(groups: Sequence[Group], network_of: dict[int, Network]) -> list[str]:
    first = [network_of[id(group.runs[0])] for group in groups]
    titles = [
        net.setting or net.title if len(group.runs) > 1 else net.title
        for group, net in zip(groups, first, strict=True)
    ]
    counts = Counter(titles)
    return [
        title if counts[title] == 1 else net.title for title, net in zip(titles, first, strict=True)
    ]


def _pairs(group: Group, base: Group, network_of: dict[int, Network]) -> Pairs:
    """Networks of the seeds that both groups have a score of, each with that of the baseline."""
    own = {run.seed: network_of[id(run)] for run in group.runs}
    other = {run.seed: network_of[id(run)] for run in base.runs}
    shared = group.scores.keys() & base.scores.keys()
    return tuple((own[seed], other[seed]) for seed in group.seeds if seed in shared)


def _gain(to: str, pairs: Pairs, *, counts: bool) -> Gain:
    values = [one.metrics["miou"] - two.metrics["miou"] for one, two in pairs]
    over_images: list[Floats] = []
    if counts:
        parts = [_parts(one, two) for one, two in pairs]
        over_images = [resampled(p[0]) - resampled(p[1]) for p in parts if p is not None]
    return gain_over(to, values, over_images if len(over_images) == len(pairs) else [])


def _parts(one: Network, two: Network) -> tuple[Integers, Integers] | None:
    """Counts of the validation images of two runs, where both kept those of the same images."""
    found = []
    for net in (one, two):
        assert net.run is not None
        path = RunFolder(net.run.path).image_counts
        if not path.is_file():
            return None
        try:
            found.append(ImageCounts.load(path))
        except UserError:
            return None  # counts of another version: seeds alone make the interval
    if found[0].names != found[1].names or found[0].classes != found[1].classes:
        return None
    return parts_of(found[0].matrices()), parts_of(found[1].matrices())
