"""Inter-class similarity: against loops in NumPy, and the laws that the definition implies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import ICSDLoss, ics_matrix, icsd_loss, intra_class_distributions

SHAPES = [(1, 2, 1, 2), (2, 3, 4, 5), (3, 1, 4, 4), (1, 6, 7, 3), (4, 5, 2, 9)]
OPTIONS = list(itertools.product([True, False], [True, False]))


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def draw_valid(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random, with at least two pixels of every image valid."""
    batch, _, height, width = shape
    valid = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid.flatten(1)[:, :2] = True
    return valid


def oracle_matrix(logits: Tensor, temperature: float, valid: Tensor | None = None) -> np.ndarray:
    """KL of every ordered pair of class maps, one pair and one pixel at a time."""
    values = logits.numpy()
    batch, classes, height, width = values.shape
    result = np.zeros((batch, classes, classes))
    for b in range(batch):
        pixels = [
            (y, x)
            for y in range(height)
            for x in range(width)
            if valid is None or bool(valid[b, y, x])
        ]
        for i in range(classes):
            for j in range(classes):
                z_i = [values[b, i, y, x] / temperature for y, x in pixels]
                z_j = [values[b, j, y, x] / temperature for y, x in pixels]
                sum_i = math.fsum(math.exp(v) for v in z_i)
                sum_j = math.fsum(math.exp(v) for v in z_j)
                result[b, i, j] = math.fsum(
                    math.exp(v) / sum_i * (v - math.log(sum_i) - w + math.log(sum_j))
                    for v, w in zip(z_i, z_j, strict=True)
                )
    return result


def oracle_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    normalize_rows: bool,
    per_image: bool,
    valid: Tensor | None = None,
) -> float:
    pair = []
    for logits in (student, teacher):
        matrices = oracle_matrix(logits, temperature, valid)
        if not per_image:
            matrices = matrices.sum(axis=0)[None] / len(matrices)
        if normalize_rows:
            for matrix in matrices:
                for row in matrix:
                    row /= max(math.sqrt(sum(v * v for v in row)), 1e-6)
        pair.append(matrices)
    return float(((pair[0] - pair[1]) ** 2).mean())


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
        matrix.numpy(), oracle_matrix(logits, temperature, valid), rtol=1e-10, atol=1e-12
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


@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_equals_loop(shape: tuple[int, ...], normalize_rows: bool, per_image: bool) -> None:
    student, teacher, valid = draw(shape, 1), draw(shape, 2), draw_valid(shape)
    for temperature, where in ((1.0, None), (2.5, None), (2.5, valid)):
        loss = icsd_loss(
            student,
            teacher,
            temperature=temperature,
            normalize_rows=normalize_rows,
            per_image=per_image,
            valid=where,
        )
        assert loss.shape == ()
        expected = oracle_loss(student, teacher, temperature, normalize_rows, per_image, where)
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_options_differ_from_each_other() -> None:
    student, teacher = draw((3, 4, 4, 4), 1), draw((3, 4, 4, 4), 2)
    values = {
        float(icsd_loss(student, teacher, normalize_rows=rows, per_image=image))
        for rows, image in OPTIONS
    }
    assert len(values) == 4


def test_defaults_are_those_of_the_docstring() -> None:
    student, teacher = draw((2, 4, 4, 4), 1), draw((2, 4, 4, 4), 2)
    explicit = icsd_loss(student, teacher, temperature=1.0, normalize_rows=True, per_image=False)
    assert torch.equal(icsd_loss(student, teacher), explicit)
    assert torch.equal(ICSDLoss()(student, teacher), explicit)


@pytest.mark.parametrize("seed", range(5))
def test_normalised_loss_is_bounded_by_four_over_classes(seed: int) -> None:
    student, teacher = draw((2, 6, 4, 4), seed, 20), draw((2, 6, 4, 4), seed + 100, 20)
    assert 0 < float(icsd_loss(student, teacher)) <= 4 / 6


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_loss_and_no_gradient_at_the_teacher(
    dtype: torch.dtype, normalize_rows: bool, per_image: bool, with_valid: bool
) -> None:
    teacher = draw((2, 4, 5, 5)).to(dtype)
    student = teacher.clone().requires_grad_()
    valid = draw_valid(teacher.shape) if with_valid else None
    loss = icsd_loss(
        student, teacher, normalize_rows=normalize_rows, per_image=per_image, valid=valid
    )
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_equals_differences(
    temperature: float, normalize_rows: bool, per_image: bool, with_valid: bool
) -> None:
    shape = (2, 3, 3, 4)
    teacher = draw(shape, 2, 1.0)
    valid = draw_valid(shape) if with_valid else None

    def loss(student: Tensor) -> Tensor:
        return icsd_loss(
            student,
            teacher,
            temperature=temperature,
            normalize_rows=normalize_rows,
            per_image=per_image,
            valid=valid,
        )

    student = draw(shape, 1, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(loss(student), student)
    assert float(gradient.abs().max()) > 1e-5


def test_gradient_reaches_the_student_only() -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    teacher = draw((2, 3, 4, 4), 2).requires_grad_()
    icsd_loss(student, teacher).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    student = draw((2, 4, 6, 6), 1).to(dtype).requires_grad_()
    teacher = draw((2, 4, 6, 6), 2).to(dtype)
    loss = icsd_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(icsd_loss(student.float(), teacher.float()).item())
    assert loss.item() == pytest.approx(
        float(icsd_loss(draw((2, 4, 6, 6), 1), draw((2, 4, 6, 6), 2))), rel=0.05
    )
    assert bool(student.grad.isfinite().all())


def test_autocast_does_not_lower_the_precision() -> None:
    student, teacher = draw((2, 4, 8, 8), 1).float(), draw((2, 4, 8, 8), 2).float()
    expected = ics_matrix(student), icsd_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        matrix, loss = ics_matrix(student), icsd_loss(student, teacher)
    torch.testing.assert_close(matrix, expected[0])
    torch.testing.assert_close(loss, expected[1])


def test_a_teacher_of_another_precision_fits() -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    expected = icsd_loss(student, teacher)
    torch.testing.assert_close(icsd_loss(student.float(), teacher), expected.float())
    assert icsd_loss(student, teacher.float()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
def test_extreme_logits_stay_finite(
    normalize_rows: bool, per_image: bool, size: float, dtype: torch.dtype
) -> None:
    student = (draw((2, 4, 5, 5), 1).sign() * size).to(dtype).requires_grad_()
    teacher = (draw((2, 4, 5, 5), 2).sign() * size).to(dtype)
    loss = icsd_loss(student, teacher, normalize_rows=normalize_rows, per_image=per_image)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert not bool(student.grad.isnan().any())
    if dtype == torch.float32:  # the gradient of KLs of 20000 nats is beyond half precision
        assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
def test_constant_logits_have_finite_gradients(normalize_rows: bool, per_image: bool) -> None:
    student = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    loss = icsd_loss(
        student, draw((2, 3, 4, 4)).float(), normalize_rows=normalize_rows, per_image=per_image
    )
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(student.grad.isfinite().all())
    flat = icsd_loss(student, torch.zeros(2, 3, 4, 4), normalize_rows=normalize_rows)
    assert flat.item() == pytest.approx(0, abs=1e-6)


def test_one_class_gives_no_loss() -> None:
    student = draw((1, 1, 4, 4), 1).requires_grad_()
    loss = icsd_loss(student, draw((1, 1, 4, 4), 2))
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize("fill", [-1e4, 0.0, 1e4])
def test_padding_neither_counts_nor_learns(fill: float) -> None:
    shape = (2, 3, 4, 6)
    student, teacher, valid = draw(shape, 1), draw(shape, 2), draw_valid(shape)
    expected = icsd_loss(student, teacher, valid=valid)
    outside = ~valid[:, None].expand(shape)
    student = student.masked_fill(outside, fill).requires_grad_()
    teacher = teacher.masked_fill(outside, -fill)
    loss = icsd_loss(student, teacher, valid=valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert bool((student.grad[outside] == 0).all())
    assert float(student.grad[~outside].abs().min()) > 0


def test_padding_equals_a_smaller_map() -> None:
    student, teacher = draw((2, 3, 6, 6), 1), draw((2, 3, 6, 6), 2)
    valid = torch.zeros(2, 6, 6, dtype=torch.bool)
    valid[:, :4, :5] = True
    torch.testing.assert_close(
        icsd_loss(student, teacher, valid=valid),
        icsd_loss(student[:, :, :4, :5], teacher[:, :, :4, :5]),
    )


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


def test_memory_layout_does_not_matter() -> None:
    student, teacher = draw((2, 4, 5, 6), 1), draw((2, 4, 5, 6), 2)
    expected = icsd_loss(student, teacher)
    channels_last = student.contiguous(memory_format=torch.channels_last)
    strided = torch.zeros(2, 4, 10, 12, dtype=torch.float64)[:, :, ::2, ::2].copy_(student)
    transposed = student.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (channels_last, strided, transposed):
        assert not view.is_contiguous()
        torch.testing.assert_close(icsd_loss(view, teacher), expected)
        torch.testing.assert_close(icsd_loss(teacher, view), icsd_loss(teacher, student))


@pytest.mark.parametrize(("normalize_rows", "per_image"), OPTIONS)
def test_module_equals_function(normalize_rows: bool, per_image: bool) -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    valid = draw_valid((2, 3, 4, 4))
    options = {"temperature": 2.0, "normalize_rows": normalize_rows, "per_image": per_image}
    module = ICSDLoss(**options)
    assert torch.equal(module(student, teacher), icsd_loss(student, teacher, **options))
    assert torch.equal(
        module(student, teacher, valid), icsd_loss(student, teacher, valid=valid, **options)
    )
    assert module.needs == "logits"
    assert not list(module.parameters())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 4, 4), (2, 3, 8, 8)),
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((2, 3, 4, 4), (1, 3, 4, 4)),
        ((3, 4, 4), (3, 4, 4)),
        ((2, 3, 4), (2, 3, 4, 4)),
    ],
)
def test_shapes_that_differ_are_named(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        icsd_loss(torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_map_size_gets_a_hint_how_to_mend_it() -> None:
    with pytest.raises(UserError, match="interpolate"):
        icsd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("function", [ics_matrix, intra_class_distributions])
def test_a_map_without_batch_is_refused(function: object) -> None:
    with pytest.raises(UserError, match=r"\(3, 4, 4\).*\(B, C, H, W\)"):
        function(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 1, 4, 4)])
def test_inside_of_another_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="valid"):
        ics_matrix(draw((2, 3, 4, 4)), 1.0, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_bad_temperature_is_refused(temperature: float) -> None:
    logits = draw((1, 2, 2, 2))
    with pytest.raises(UserError, match="temperature"):
        ics_matrix(logits, temperature)
    with pytest.raises(UserError, match="temperature"):
        icsd_loss(logits, logits, temperature=temperature)
    with pytest.raises(UserError, match="temperature"):
        ICSDLoss(temperature=temperature)
