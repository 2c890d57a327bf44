"""The game of student and critic: whose gradient goes where."""

from __future__ import annotations

import copy
from functools import cache

import oracles_of_methods as of_methods
import pytest
import torch
from draws import draw, draw_valid

from aicsd.losses.holistic import HolisticLoss, SpectralConv

SHAPE = (2, 3, 7, 6)
STEP = 1e-5


def build() -> HolisticLoss:
    return copy.deepcopy(_settled())


@cache
def _settled() -> HolisticLoss:
    torch.manual_seed(0)
    module = HolisticLoss(student_channels=3, width=4).double()
    for layer in module.critic.layers:
        assert isinstance(layer, SpectralConv)
        for _ in range(200):  # the gradient is exact where the vector has arrived
            layer.kernel()
    return module


def test_the_student_learns_its_part_only() -> None:
    student, teacher, valid = draw(SHAPE, 1), draw(SHAPE, 2), draw_valid(SHAPE)
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(build()(leaf, teacher, valid), leaf)
    way = draw(SHAPE, 3)
    ends = [
        of_methods.holistic_parts(student + sign * way, teacher, valid, build())[0]
        for sign in (STEP, -STEP)
    ]
    slope = (ends[0] - ends[1]) / (2 * STEP)
    assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1e-6


def test_the_critic_learns_its_part_only() -> None:
    student, teacher = draw(SHAPE, 1), draw(SHAPE, 2)
    module = build()
    module(student, teacher).backward()
    for name, parameter in module.critic.named_parameters():
        way = draw(tuple(parameter.shape), 4, 1.0)
        ends = []
        for sign in (STEP, -STEP):
            moved = build()
            moved.critic.get_parameter(name).data += sign * way
            ends.append(of_methods.holistic_parts(student, teacher, None, moved)[1])
        assert parameter.grad is not None
        slope = float((parameter.grad * way).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-3, abs=1e-7), name


def test_a_critic_that_trains_tells_the_networks_apart() -> None:
    torch.manual_seed(0)
    module = HolisticLoss(student_channels=3, width=8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    for step in range(40):
        student = draw((4, 3, 12, 12), 2 * step, 0.5).float()  # unsure
        teacher = draw((4, 3, 12, 12), 2 * step + 1, 4.0).float()
        optimizer.zero_grad()
        module(student, teacher).backward()
        optimizer.step()
    _, ours, theirs = module.critic([student.softmax(dim=1), teacher.softmax(dim=1)])
    assert theirs.min() > ours.max()


def test_the_norm_of_a_kernel_goes_to_1() -> None:
    layer = copy.deepcopy(build().critic.layers[1])
    assert isinstance(layer, SpectralConv)
    for _ in range(100):
        kernel = layer.kernel()
    norm = torch.linalg.matrix_norm(kernel.flatten(1), 2)
    assert norm.item() == pytest.approx(1, rel=1e-4)
