"""Pixel-wise distillation: against loops in NumPy and torch's own kl_div."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import PixelKDLoss, pixel_kd_loss
from aicsd.losses.pixel_kd import Reduction

SHAPES = [(1, 2, 1, 1), (2, 3, 4, 5), (3, 1, 4, 4), (4, 6, 2, 3)]
REDUCTIONS = list(get_args(Reduction))


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def draw_valid(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    batch, _, height, width = shape
    valid = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[0, 0, 0] = True
    return valid


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def oracle(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    reduction: str,
    valid: Tensor | None = None,
) -> float:
    batch, classes, height, width = student.shape
    terms = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if valid is not None and not bool(valid[b, y, x]):
                    continue
                p = softmax(teacher[b, :, y, x].numpy() / temperature)
                q = softmax(student[b, :, y, x].numpy() / temperature)
                terms.append(float((p * (np.log(p) - np.log(q))).sum()))
    total = temperature**2 * math.fsum(terms)
    divisor = {
        "pixel_mean": len(terms),
        "element_mean": len(terms) * classes,
        "image_sum": batch,
    }[reduction]
    return total / divisor


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loop(
    shape: tuple[int, ...], temperature: float, reduction: Reduction, with_valid: bool
) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    valid = draw_valid(shape) if with_valid else None
    arguments = {"temperature": temperature, "reduction": reduction, "valid": valid}
    loss = pixel_kd_loss(student, teacher, **arguments)
    expected = oracle(student, teacher, temperature, reduction, valid)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)
    single = pixel_kd_loss(student.float(), teacher.float(), **arguments)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_kl_div_of_torch(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    by_pixel = [
        (maps / temperature).permute(0, 2, 3, 1).reshape(-1, shape[1]).log_softmax(1)
        for maps in (student, teacher)
    ]
    expected = F.kl_div(*by_pixel, log_target=True, reduction="batchmean") * temperature**2
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


def test_default_reduction_is_pixel_mean_at_temperature_one() -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    expected = pixel_kd_loss(student, teacher, temperature=1.0, reduction="pixel_mean")
    assert torch.equal(pixel_kd_loss(student, teacher), expected)
    assert torch.equal(PixelKDLoss()(student, teacher), expected)


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


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_loss_and_no_gradient_at_the_teacher(reduction: Reduction, dtype: torch.dtype) -> None:
    teacher = draw((2, 4, 3, 3)).to(dtype)
    student = teacher.clone().requires_grad_()
    loss = pixel_kd_loss(student, teacher, temperature=2.0, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    # p_S - p_T, once by way of the sum of p_T: zero up to the last digit
    assert float(student.grad.abs().max()) < 30 * torch.finfo(dtype).eps


def test_a_constant_added_to_a_pixel_changes_nothing() -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    shift = draw((2, 1, 4, 4), 3, 50.0)
    torch.testing.assert_close(
        pixel_kd_loss(student + shift, teacher - shift), pixel_kd_loss(student, teacher)
    )


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_equals_differences(
    temperature: float, reduction: Reduction, with_valid: bool
) -> None:
    shape = (2, 3, 3, 2)
    teacher = draw(shape, 2, 1.0)
    valid = draw_valid(shape) if with_valid else None

    def loss(student: Tensor) -> Tensor:
        return pixel_kd_loss(
            student, teacher, temperature=temperature, reduction=reduction, valid=valid
        )

    assert torch.autograd.gradcheck(loss, (draw(shape, 1, 1.0).requires_grad_(),))


def test_gradient_reaches_the_student_only() -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    teacher = draw((2, 3, 4, 4), 2).requires_grad_()
    pixel_kd_loss(student, teacher).backward()
    assert teacher.grad is None
    torch.testing.assert_close(
        student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 32
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    student = draw((2, 4, 6, 6), 1).to(dtype).requires_grad_()
    teacher = draw((2, 4, 6, 6), 2).to(dtype)
    loss = pixel_kd_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(pixel_kd_loss(student.float(), teacher.float()).item())
    assert bool(student.grad.isfinite().all())


def test_autocast_does_not_lower_the_precision() -> None:
    student, teacher = draw((2, 4, 8, 8), 1).float(), draw((2, 4, 8, 8), 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pixel_kd_loss(student, teacher)
    torch.testing.assert_close(loss, pixel_kd_loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_extreme_logits_stay_finite(reduction: Reduction, size: float, dtype: torch.dtype) -> None:
    student = (draw((2, 4, 5, 5), 1).sign() * size).to(dtype).requires_grad_()
    teacher = (draw((2, 4, 5, 5), 2).sign() * size).to(dtype)
    loss = pixel_kd_loss(student, teacher, reduction=reduction)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("fill", [-1e4, 1e4])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_neither_counts_nor_learns(reduction: Reduction, fill: float) -> None:
    shape = (2, 3, 4, 6)
    student, teacher, valid = draw(shape, 1), draw(shape, 2), draw_valid(shape)
    expected = pixel_kd_loss(student, teacher, reduction=reduction, valid=valid)
    outside = ~valid[:, None].expand(shape)
    student = student + outside * fill * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    student.requires_grad_()
    loss = pixel_kd_loss(student, teacher, reduction=reduction, valid=valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert bool((student.grad[outside] == 0).all())
    assert float(student.grad[~outside].abs().min()) > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_of_padding_only_gives_zero(reduction: Reduction) -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    loss = pixel_kd_loss(student, draw((2, 3, 4, 4), 2), reduction=reduction, valid=valid)
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


def test_inside_of_another_size_is_taken_by_nearest_pixel() -> None:
    student, teacher = draw((2, 3, 4, 6), 1), draw((2, 3, 4, 6), 2)
    valid = draw_valid((2, 1, 16, 24))
    assert torch.equal(
        pixel_kd_loss(student, teacher, valid=valid),
        pixel_kd_loss(student, teacher, valid=valid[:, ::4, ::4]),
    )


def test_memory_layout_does_not_matter() -> None:
    student, teacher = draw((2, 4, 5, 6), 1), draw((2, 4, 5, 6), 2)
    view = student.contiguous(memory_format=torch.channels_last)
    assert not view.is_contiguous()
    torch.testing.assert_close(pixel_kd_loss(view, teacher), pixel_kd_loss(student, teacher))
    torch.testing.assert_close(pixel_kd_loss(teacher, view), pixel_kd_loss(teacher, student))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_module_equals_function(reduction: Reduction) -> None:
    student, teacher = draw((2, 3, 4, 4), 1), draw((2, 3, 4, 4), 2)
    valid = draw_valid((2, 3, 4, 4))
    module = PixelKDLoss(temperature=2.0, reduction=reduction)
    for where in (None, valid):
        expected = pixel_kd_loss(
            student, teacher, temperature=2.0, reduction=reduction, valid=where
        )
        assert torch.equal(module(student, teacher, where), expected)
    assert module.needs == "probabilities"
    assert not list(module.parameters())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 3, 4, 4), (2, 3, 8, 8)), ((2, 3, 4, 4), (2, 5, 4, 4)), ((3, 4, 4), (3, 4, 4))],
)
def test_shapes_that_differ_are_named(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        pixel_kd_loss(torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_bad_temperature_is_refused(temperature: float) -> None:
    logits = draw((1, 2, 2, 2))
    with pytest.raises(UserError, match="temperature"):
        pixel_kd_loss(logits, logits, temperature=temperature)
    with pytest.raises(UserError, match="temperature"):
        PixelKDLoss(temperature=temperature)


def test_unknown_reduction_is_refused() -> None:
    logits = draw((1, 2, 2, 2))
    with pytest.raises(UserError, match=r"'mean'.*pixel_mean.*element_mean.*image_sum"):
        pixel_kd_loss(logits, logits, reduction="mean")
    with pytest.raises(UserError, match="'mean'"):
        PixelKDLoss(reduction="mean")
