"""Whether a teacher is worth learning from: its score against guessing and the student alone."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from aicsd.benchmark.statistics import ASSUMED_STD, CRITICAL
from aicsd.data.open import differs_by_root
from aicsd.errors import UserError
from aicsd.runs import FinishedRun, RunFolder

TRIAL_STEPS = 200
"""Steps below which a run tries things out and costs little."""
FORCE = "--force_teacher --resume"
MEETING_IOU = 0.25
"""IoU from which a class of the teacher is taken to mean a class of the data."""
SHOWN_PAIRS = 4
OTHER_DATA_KEYS = ("root", "workers", "cache_mb", "check")
"""Keys of the data that change nothing about what a network learns; but the root, of data that is
known by it alone."""


def guessing_miou(confusion: Sequence[Sequence[int]]) -> float:
    """mIoU of drawing every pixel's class at random, each as likely.

    Args:
        confusion: (C, C) pixel counts of any network on the same labels, rows = label.

    Returns:
        NaN if no pixel has a label.
    """
    counts = [sum(row) for row in confusion]
    total, classes = sum(counts), len(counts)
    if not total:
        return math.nan
    shares = [count / total for count in counts]
    right = [share / classes for share in shares]
    return statistics.fmean(
        hit / (share + 1 / classes - hit) for hit, share in zip(right, shares, strict=True)
    )


def constant_miou(confusion: Sequence[Sequence[int]]) -> float:
    """mIoU of giving every pixel the most common class; NaN if no pixel has a label."""
    counts = [sum(row) for row in confusion]
    present = sum(count > 0 for count in counts)
    return max(counts) / sum(counts) / present if present else math.nan


def check_teacher(
    score: float, confusion: Sequence[Sequence[int]], forced: bool, steps: int
) -> str | None:
    """Refuse a teacher that is no better than guessing.

    Args:
        score: its mIoU on the validation split.
        confusion: its (C, C) pixel counts there.
        forced: whether it is used in any case.
        steps: steps of the whole run; a trial of fewer than :data:`TRIAL_STEPS` continues.

    Returns:
        A line for one that is no better than a constant answer.

    Raises:
        UserError: its score is that of guessing, or below.
    """
    guess = guessing_miou(confusion)
    if math.isnan(guess) or math.isnan(score):
        return None
    doubts = "are its classes, their order, its channel order and its normalisation right?"
    if score <= guess:
        text = (
            f"the teacher's val mIoU {score:.4f} is no better than guessing ({guess:.4f}): {doubts}"
        )
        if forced or steps < TRIAL_STEPS:
            return f"warning: {text}"
        raise UserError(f"{text} To train with it nevertheless: {FORCE}")
    constant = constant_miou(confusion)
    if score <= constant:
        return (
            f"warning: the teacher's val mIoU {score:.4f} is no better than the most common class "
            f"everywhere ({constant:.4f}): {doubts}"
        )
    return None


def check_classes(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """A line for the classes of a teacher that fit another class of the data better than their own.

    Two classes match if each is the best one of the other by IoU, and that is above
    :data:`MEETING_IOU`.

    Args:
        confusion: (C, C) pixel counts of the teacher, rows = label.
        names: C classes of the data.
    """
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    iou = [
        [count / max(1, sum(row) + columns[number] - count) for number, count in enumerate(row)]
        for row in confusion
    ]
    pairs = []
    for label, row in enumerate(iou):
        found = max(range(len(row)), key=row.__getitem__)
        best = max(range(len(iou)), key=lambda other: iou[other][found])
        if found != label and best == label and row[found] >= MEETING_IOU:
            pairs.append(f"{names[found]} fits {names[label]} (IoU {row[found]:.2f})")
    if not pairs:
        return []
    more = f" and {len(pairs) - SHOWN_PAIRS} more" if len(pairs) > SHOWN_PAIRS else ""
    return [
        f"warning: classes of the teacher fit other classes of the data than their own: "
        f"{', '.join(pairs[:SHOWN_PAIRS])}{more}; are they in the right order? "
        "--teacher_classes maps them"
    ]


class Headroom(NamedTuple):
    """Room for improvement of a student, and the number of runs that shows it."""

    gap: float
    """Teacher's mIoU minus the mean of the student alone."""
    alone: float
    runs: int
    """Finished runs of the student alone."""
    std: float
    """Standard deviation over their seeds, or :data:`ASSUMED_STD`."""

    @property
    def seeds(self) -> int:
        """Runs of each of two methods by which half of the gap would show.

        A difference of means d is found with n = 2 (z_0.975 + z_0.8)² s² / d² runs each.
        """
        return max(2, math.ceil(2 * CRITICAL * self.std**2 / (self.gap / 2) ** 2))

    def __str__(self) -> str:
        scores = (
            f"teacher {100 * (self.alone + self.gap):.2f}, student alone {100 * self.alone:.2f} "
            f"over {self.runs} run{'s' * (self.runs > 1)}"
        )
        if self.gap <= 0:
            return f"no headroom: {scores}; the student has nothing to gain in mIoU"
        spread = (
            f"a standard deviation of {100 * self.std:.2f} points between seeds"
            f"{'' if self.runs > 1 else ' is assumed'}"
        )
        return (
            f"headroom {100 * self.gap:.2f} points ({scores}); half of it shows with {self.seeds} "
            f"seeds of each method ({spread})"
        )


def find_headroom(place: Path, config: Mapping[str, Any], teacher_miou: float) -> Headroom | None:
    """Headroom by the finished runs of the same student alone beside a run folder.

    Runs count that differ from the run in nothing but method, teacher, terms and seed.

    Args:
        place: folder of the run.
        config: config of the run.
        teacher_miou: on the validation split.

    Returns:
        None if there is no such run.
    """
    mine, resumed_from = _comparable(config), RunFolder(place).resumed_from
    scores: dict[int, float] = {}
    for run in _finished_beside(place):
        if not run.is_alone or _comparable(run.config) != mine:
            continue
        if run.resumed_from != resumed_from:  # its schedule differs
            continue
        miou = run.result.get("miou")
        if isinstance(miou, int | float) and math.isfinite(miou):
            scores[int(run.config["seed"])] = float(miou)
    if not scores or not math.isfinite(teacher_miou):
        return None
    found = list(scores.values())
    std = statistics.stdev(found) if len(found) > 1 else ASSUMED_STD
    mean = statistics.fmean(found)
    return Headroom(teacher_miou - mean, mean, len(found), std)


def check_headroom(headroom: Headroom, forced: bool, steps: int) -> None:
    """Refuse a teacher that is no better than the student alone.

    Args:
        headroom: headroom of the run.
        forced: whether the teacher is used in any case.
        steps: as of :func:`check_teacher`.

    Raises:
        UserError: its score is that of the student alone, or below.
    """
    if headroom.gap <= 0 and not forced and steps >= TRIAL_STEPS:
        raise UserError(f"{headroom}. To train with it nevertheless: {FORCE}")


def _finished_beside(place: Path) -> Iterator[FinishedRun]:
    with suppress(OSError):
        for path in sorted(place.absolute().parent.iterdir()):
            folder = RunFolder(path)
            # whatever else lies beside the run, some of it closed to this user
            with suppress(UserError, OSError):
                if folder.is_finished:
                    yield folder.read()


def _comparable(config: Mapping[str, Any]) -> str:
    """Settings that two runs must share for their students to be compared."""
    given = config.get("data") or {}
    data = {key: value for key, value in given.items() if key not in OTHER_DATA_KEYS}
    if differs_by_root(str(given.get("name"))):
        data["root"] = os.path.realpath(str(given.get("root")))
    network = config.get("student") or config.get("model")
    keys = ("epochs", "optimizer", "protocol", "precision")
    found = {"data": data, "network": network, **{key: config.get(key) for key in keys}}
    return json.dumps(found, sort_keys=True)
