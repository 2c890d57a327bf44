"""Inter-class similarity: against loops in NumPy, and the laws that the definition implies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from draws import draw, draw_valid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import ics_matrix, icsd_loss, intra_class_distributions

SHAPES = [(1, 2, 1, 2), (2, 3, 4, 5), (3, 1, 4, 4), (1, 6, 7, 3), (4, 5, 2, 9)]
OPTIONS = list(itertools.product([True, False], [True, False]))


def test_matrix_of_two_pixels_by_hand() -> None:
    p, q = (0.75, 0.25), (0.5, 0.5)
    logits = torch.tensor([p, q], dtype=torch.float64).log().reshape(1, 2, 1, 2)
    p_to_q = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    q_to_p = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    expected = torch.tensor([[[0.0, p_to_q], [q_to_p, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(ics_matrix(logits), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_equals_loop(shape: tuple[int, ...], temperature: float, with_valid: bool) -> None:
    logits = draw(shape)
    valid = draw_valid(shape) if with_valid else None
    matrix = ics_matrix(logits, temperature, valid)
    assert matrix.dtype == torch.float64
    assert matrix.shape == (shape[0], shape[1], shape[1])
    np.testing.assert_allclose(
        matrix.numpy(), oracles.ics_matrix(logits, temperature, valid), rtol=1e-10, atol=1e-12
    )
    single = ics_matrix(logits.float(), temperature, valid)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), matrix, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float64,
        array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
        elements=st.floats(-30, 30),
    ),
    st.floats(0.3, 8),
)
def test_matrix_is_a_divergence(values: np.ndarray, temperature: float) -> None:
    matrix = ics_matrix(torch.from_numpy(values), temperature)
    assert bool((matrix >= -1e-10).all())
    assert bool((matrix.diagonal(dim1=1, dim2=2) == 0).all())
    single = ics_matrix(torch.from_numpy(values).float(), temperature)
    assert bool((single >= -1e-3).all())
    assert bool((single.diagonal(dim1=1, dim2=2) == 0).all())


def test_matrix_is_not_symmetric() -> None:
    matrix = ics_matrix(draw((1, 4, 5, 5)))
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    assert bool(((matrix - matrix.transpose(1, 2)).abs()[0][off_diagonal] > 1e-3).all())


def test_matrix_ignores_a_constant_added_to_a_class_map() -> None:
    logits = draw((2, 3, 4, 5))
    shifted = logits + torch.tensor([7.0, -20.0, 300.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(ics_matrix(shifted), ics_matrix(logits), rtol=0, atol=1e-10)


def test_matrix_follows_the_order_of_classes_but_not_of_pixels() -> None:
    logits = draw((2, 4, 3, 5))
    matrix = ics_matrix(logits)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(ics_matrix(logits[:, order]), matrix[:, order][:, :, order])
    shuffled = logits.flatten(2)[:, :, torch.randperm(15)].reshape(2, 4, 5, 3)
    torch.testing.assert_close(ics_matrix(shuffled), matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_distributions_are_the_spatial_softmax(shape: tuple[int, ...]) -> None:
    logits, valid = draw(shape), draw_valid(shape)
    rho = intra_class_distributions(logits, 2.0)
    torch.testing.assert_close(rho, (logits / 2).flatten(2).softmax(2).reshape(shape))
    masked = intra_class_distributions(logits, 2.0, valid)
    for b, c in itertools.product(range(shape[0]), range(shape[1])):
        values = logits[b, c][valid[b]] / 2
        torch.testing.assert_close(masked[b, c][valid[b]], values.softmax(0))
        assert bool((masked[b, c][~valid[b]] == 0).all())
    for maps in (rho, masked):
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(shape[:2], dtype=torch.float64))


def test_options_differ_from_each_other() -> None:
    student, teacher = draw((3, 4, 4, 4), 1), draw((3, 4, 4, 4), 2)
    values = {
        float(icsd_loss(student, teacher, normalize_rows=rows, per_image=image))
        for rows, image in OPTIONS
    }
    assert len(values) == 4


@pytest.mark.parametrize("seed", range(5))
def test_normalised_loss_is_bounded_by_four_over_classes(seed: int) -> None:
    student, teacher = draw((2, 6, 4, 4), seed, 20), draw((2, 6, 4, 4), seed + 100, 20)
    assert 0 < float(icsd_loss(student, teacher)) <= 4 / 6


def test_autocast_does_not_lower_the_precision() -> None:
    logits = draw((2, 4, 8, 8)).float()
    with torch.autocast("cpu", torch.bfloat16):
        matrix = ics_matrix(logits)
    torch.testing.assert_close(matrix, ics_matrix(logits))


@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
def test_two_constant_maps_agree(normalize_rows: bool, per_image: bool) -> None:
    student = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    flat = icsd_loss(
        student,
        torch.zeros(2, 3, 4, 4),
        normalize_rows=normalize_rows,
        per_image=per_image,
    )
    flat.backward()
    assert flat.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_one_class_gives_no_loss() -> None:
    student = draw((1, 1, 4, 4), 1).requires_grad_()
    loss = icsd_loss(student, draw((1, 1, 4, 4), 2))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
def test_an_image_of_padding_only_gives_no_nan(normalize_rows: bool, per_image: bool) -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1] = False
    loss = icsd_loss(
        student,
        draw((2, 3, 4, 4), 2),
        normalize_rows=normalize_rows,
        per_image=per_image,
        valid=valid,
    )
    loss.backward()
    assert math.isfinite(loss.item())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("size", [(16, 24), (13, 22), (2, 3)])
def test_inside_of_another_size_is_taken_by_nearest_pixel(size: tuple[int, int]) -> None:
    logits = draw((2, 3, 4, 6))
    valid = draw_valid((2, 1, *size))
    rows = [y * size[0] // 4 for y in range(4)]
    columns = [x * size[1] // 6 for x in range(6)]
    small = valid[:, rows][:, :, columns]
    assert 0 < int(small.sum()) < small.numel()
    assert torch.equal(ics_matrix(logits, 1.0, valid), ics_matrix(logits, 1.0, small))


@pytest.mark.parametrize("function", [ics_matrix, intra_class_distributions])
def test_a_map_without_batch_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(UserError, match=r"\(3, 4, 4\).*\(B, C, H, W\)"):
        function(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 1, 4, 4)])
def test_inside_of_another_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="valid"):
        ics_matrix(draw((2, 3, 4, 4)), 1.0, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        ics_matrix(draw((1, 2, 2, 2)), temperature)


def test_a_teacher_that_excludes_a_class_gives_the_limit() -> None:
    """Logits of -inf: the loss is that of logits that go to -inf, and so is the gradient."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(2, 4, 6, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 4, 6, 5, generator=generator)
    excluded = teacher.clone()
    excluded[:, 1, :3] = -torch.inf
    excluded[:, 2] = -torch.inf  # a class that is nowhere
    low = teacher.clone()
    low[:, 1, :3] = -1e9
    low[:, 2] = 0.0  # nowhere more than elsewhere
    losses = [icsd_loss(student, maps) for maps in (excluded, low)]
    gradients = [torch.autograd.grad(loss, student)[0] for loss in losses]
    assert torch.isfinite(losses[0])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert ics_matrix(excluded).isfinite().all()
