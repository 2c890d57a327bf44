"""Schedules: their values at the ends and in the middle."""

from __future__ import annotations

import itertools

import pytest

from aicsd.schedules import SCHEDULES, constant, falling, poly, rising


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", (1.0, 1.0, 1.0, 1.0)),
        ("rising", (0.0, 0.25, 0.5, 1.0)),
        ("falling", (1.0, 0.75, 0.5, 0.0)),
    ],
)
def test_values(name: str, values: tuple[float, ...]) -> None:
    assert tuple(SCHEDULES[name](progress) for progress in (0.0, 0.25, 0.5, 1.0)) == values


def test_names() -> None:
    assert {"constant": constant, "rising": rising, "falling": falling} == SCHEDULES


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.3, 0.9, 1.0])
def test_rising_and_falling_share_one_alpha(progress: float) -> None:
    assert rising(progress) + falling(progress) == 1.0


@pytest.mark.parametrize(
    ("progress", "power", "expected"),
    [
        (0.0, 0.9, 1.0),
        (0.5, 0.9, 0.5358867312681466),
        (1.0, 0.9, 0.0),
        (0.75, 2.0, 0.0625),
        (0.25, 1.0, 0.75),
        (0.4, 0.0, 1.0),
        (1.0, 0.0, 1.0),
    ],
)
def test_poly(progress: float, power: float, expected: float) -> None:
    assert poly(progress, power) == pytest.approx(expected, rel=1e-14)


def test_poly_has_the_published_power_and_only_falls() -> None:
    values = [poly(step / 100) for step in range(101)]
    assert values[50] == pytest.approx(0.5**0.9)
    assert all(a > b for a, b in itertools.pairwise(values))
