"""Schedules: their values at the ends and in the middle."""

from __future__ import annotations

import itertools

import pytest

from aicsd.schedules import SCHEDULES, constant, falling, poly, rising, warm_up


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


@pytest.mark.parametrize(
    ("step", "length", "total", "expected"),
    [
        (0, 0, 10, 1.0),
        (0, 0.1, 1000, 0.01),  # not 0: the first step would be lost
        (49, 0.1, 1000, 0.5),
        (99, 0.1, 1000, 1.0),
        (700, 0.1, 1000, 1.0),
        (0, 0.1, 4, 1.0),
        (0, 1, 10, 1.0),
        (0, 4, 10, 0.25),
        (2, 4, 10, 0.75),
        (9, 4, 10, 1.0),
    ],
)
def test_warm_up(step: int, length: float, total: int, expected: float) -> None:
    from aicsd.run_config import OptimizerConfig

    steps = OptimizerConfig(warmup=length).in_steps(total).warmup
    assert warm_up(step, steps) == pytest.approx(expected)


def test_the_learning_rates_of_a_training_warm_up() -> None:
    import torch

    from aicsd.engine.optimizer import set_learning_rate
    from aicsd.run_config import OptimizerConfig

    slow, fast = torch.zeros(1), torch.zeros(1)
    groups = [{"params": [slow], "base_lr": 0.1}, {"params": [fast], "base_lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    config = OptimizerConfig(lr=0.1, power=1.0, warmup=2)
    rates = []
    for step in range(4):
        rates.append(set_learning_rate(optimizer, config, step / 4, step))
        assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * rates[-1])
    assert rates == pytest.approx([0.05, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("warmup", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_bad_warm_up_is_refused(warmup: float) -> None:
    from aicsd.errors import UserError
    from aicsd.run_config import OptimizerConfig

    with pytest.raises(UserError, match=r"optimizer\.warmup is"):
        OptimizerConfig(warmup=warmup)
