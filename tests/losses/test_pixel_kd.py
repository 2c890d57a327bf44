"""Pixel-wise distillation: against torch's own kl_div, and its laws."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import draw, draw_valid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from aicsd.losses import pixel_kd_loss
from aicsd.losses.pixel_kd import Reduction

SHAPES = [(1, 2, 1, 1), (2, 3, 4, 5), (3, 1, 4, 4), (4, 6, 2, 3)]
REDUCTIONS = list(get_args(Reduction))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_kl_div_of_torch(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    student_logs, teacher_logs = (
        (maps / temperature).permute(0, 2, 3, 1).reshape(-1, shape[1]).log_softmax(1)
        for maps in (student, teacher)
    )
    expected = F.kl_div(student_logs, teacher_logs, log_target=True, reduction="batchmean")
    expected = expected * temperature**2
    torch.testing.assert_close(pixel_kd_loss(student, teacher, temperature=temperature), expected)
    elements = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none")
    torch.testing.assert_close(
        pixel_kd_loss(student, teacher, reduction="element_mean"), elements.mean()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_reductions_differ_by_exact_factors(shape: tuple[int, ...]) -> None:
    batch, classes, height, width = shape
    student, teacher, valid = draw(shape, 1), draw(shape, 2), draw_valid(shape)
    for where, pixels in ((None, batch * height * width), (valid, int(valid.sum()))):
        pixel_mean, element_mean, image_sum = (
            float(pixel_kd_loss(student, teacher, reduction=reduction, valid=where))
            for reduction in ("pixel_mean", "element_mean", "image_sum")
        )
        assert pixel_mean == pytest.approx(classes * element_mean, rel=1e-14)
        assert image_sum == pytest.approx(pixel_mean * pixels / batch, rel=1e-14)


def test_pixel_mean_does_not_change_with_size_or_batch() -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    larger = [maps.repeat(3, 1, 2, 2) for maps in (student, teacher)]
    torch.testing.assert_close(pixel_kd_loss(*larger), pixel_kd_loss(student, teacher))


def test_gradient_at_high_temperature_does_not_vanish() -> None:
    teacher = draw((1, 4, 3, 3), 2)
    norms = []
    for temperature in (20.0, 200.0):
        student = draw((1, 4, 3, 3), 1).requires_grad_()
        pixel_kd_loss(student, teacher, temperature=temperature).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
        elements=st.floats(-40, 40, width=32),
    ),
    st.sampled_from(REDUCTIONS),
    st.floats(0.3, 8),
)
def test_never_negative(values: np.ndarray, reduction: Reduction, temperature: float) -> None:
    student = torch.from_numpy(values)
    loss = pixel_kd_loss(student, student.flip(1), temperature=temperature, reduction=reduction)
    assert loss.item() >= -1e-4 * student[0, 0].numel()


def test_a_constant_added_to_a_pixel_changes_nothing() -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    shift = draw((2, 1, 4, 4), 3, 50.0)
    torch.testing.assert_close(
        pixel_kd_loss(student + shift, teacher - shift), pixel_kd_loss(student, teacher)
    )


def test_gradient_is_the_difference_of_the_predictions() -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    teacher = draw((2, 3, 4, 4), 2)
    pixel_kd_loss(student, teacher).backward()
    torch.testing.assert_close(
        student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 32
    )
