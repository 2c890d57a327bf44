"""Schedules: pure functions of progress, the part of training that is done, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:  # noqa: ARG001
    """1 throughout."""
    return 1.0


def rising(progress: float) -> float:
    """alpha of AICSD's adaptive loss weighting: linear from 0 to 1."""
    return progress


def falling(progress: float) -> float:
    """1 - alpha of AICSD's adaptive loss weighting: linear from 1 to 0."""
    return 1.0 - progress


def poly(progress: float, power: float = 0.9) -> float:
    """Factor of the learning rate: (1 - progress) ** power (Liu et al., ParseNet)."""
    return float((1.0 - progress) ** power)


def cosine(progress: float) -> float:
    """Factor of the learning rate: half a cosine from 1 to 0 (Loshchilov and Hutter, SGDR)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warm_up(step: int, steps: float) -> float:
    """Factor of the learning rate: a straight line to 1, then 1 (Goyal et al., arXiv 1706.02677).

    Args:
        step: number of the step, from 0.
        steps: steps that it takes; 0: none.
    """
    return min(1.0, (step + 1) / steps) if steps else 1.0


SCHEDULES: dict[str, Schedule] = {"constant": constant, "rising": rising, "falling": falling}
