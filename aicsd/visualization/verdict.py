"""The result of a report in sentences: what there was to gain, what was gained, how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aicsd.benchmark.statistics import ASSUMED_STD, Gain, percent
from aicsd.visualization.entries import ReportEntry

MOST_SEEDS = 100
"""Seeds beyond which the report gives no exact number."""


def verdict(entries: Sequence[ReportEntry]) -> list[str]:
    """Headroom (teacher minus student alone), then every student: gain, interval, certainty."""
    teacher = next((s.mean("miou") for s in entries if s.is_teacher), None)
    students = [entry for entry in entries if not entry.is_teacher]
    alone = [s for s in students if s.is_alone and s.values("miou")]
    sentences = []
    if teacher is not None and len(students) > 1:
        sentences += [_headroom(teacher, one) for one in alone]
    for entry in students:
        scores = entry.values("miou")
        if not scores:
            sentences.append(f"{entry.title}: no mIoU, since no pixel has a label.")
            continue
        own = None if entry.of_other_teacher else teacher
        text = f"{entry.title}: {percent(scores, places=1)} % mIoU"
        if len(scores) > 1:
            text += f" over {len(scores)} seeds"
        if entry.gain is not None:
            sentences += [f"{text}, {_gain(entry, own)}.", _certainty(entry.gain)]
        elif entry.is_alone or not alone:
            if own is not None and not (entry.is_alone and len(students) > 1):
                text += f", {100 * (_mean(scores) - own):+.1f} points against the teacher"
            sentences.append(f"{text}.")
        else:
            sentences.append(
                f"{text}. No student alone of its settings and seeds is here to compare it with."
            )
    return sentences


def interval_text(gain: Gain) -> str:
    """``+1.2 to +4.6``; empty for one seed."""
    if gain.interval is None:
        return ""
    return " to ".join(f"{100 * bound:+.1f}" for bound in gain.interval)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _headroom(teacher: float, alone: ReportEntry) -> str:
    gap = teacher - _mean(alone.values("miou"))
    scores = (
        f"teacher {100 * teacher:.1f} %, {alone.title} {percent(alone.values('miou'), places=1)} %"
    )
    if gap <= 0:
        return f"No headroom: {scores} mIoU; there is nothing to gain from this teacher."
    return f"Headroom: {100 * gap:.1f} points ({scores} mIoU)."


def _gain(entry: ReportEntry, teacher: float | None) -> str:
    gain = entry.gain
    assert gain is not None
    text = f"{100 * gain.mean:+.1f} points against {gain.to}"
    if gain.interval is not None:
        noise = "seeds and images" if gain.over_images else "seeds"
        text += (
            f" (95 % interval {interval_text(gain)}, {len(gain.values)} pairs of equal seeds, "
            f"noise of {noise})"
        )
    base = _mean([other.metrics["miou"] for _, other in entry.pairs])
    if teacher is not None and gain.mean > 0 and teacher > base:
        text += f", {100 * gain.mean / (teacher - base):.0f} % of the headroom"
    return text


def _certainty(gain: Gain) -> str:
    """Certainty of a gain, and the number of seeds that would settle it."""
    count = len(gain.values)
    if gain.is_clear:
        return f"Clear: the interval over {count} seeds does not hold 0."
    if gain.images_alone is not None and not gain.images_alone.excludes_zero and count > 1:
        return (
            "Not clear, and more seeds alone would not make it so: the validation images are too "
            "few for a difference of this size."
        )
    needed = _count(gain.seeds_needed)
    if count < 2:
        return (
            f"Not sure: one seed. A gain of this size needs {needed} of each to be clear, if mIoU "
            f"has a standard deviation of {100 * ASSUMED_STD:.1f} points between seeds."
        )
    return f"Not clear: the interval holds 0. A gain of this size needs {needed} of each."


def _count(needed: float) -> str:
    if math.isinf(needed) or needed > MOST_SEEDS:
        return f"more than {MOST_SEEDS} seeds"
    return f"about {needed:.0f} seeds"
