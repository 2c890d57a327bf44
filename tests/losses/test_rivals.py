"""Attention, pair-wise similarity, inter-channel correlation: against loops, and their laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import (
    AttentionLoss,
    CorrelationLoss,
    PairwiseLoss,
    attention_loss,
    correlation_loss,
    pairwise_loss,
)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "attention": attention_loss,
    "pairwise": pairwise_loss,
    "correlation": correlation_loss,
}
MODULES = {"attention": AttentionLoss, "pairwise": PairwiseLoss, "correlation": CorrelationLoss}
ANY_CHANNELS = ["attention", "pairwise"]
NUMERICS = ["described", "released"]
BOTH = [(name, numerics) for name in LOSSES for numerics in NUMERICS]
SHAPES = [(1, 2, 1, 1), (2, 3, 4, 5), (3, 1, 4, 4), (1, 6, 7, 3), (2, 5, 2, 9), (1, 4, 1, 6)]


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def draw_valid(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    batch, _, height, width = shape
    valid = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[:, 0, 0] = True
    return valid


def norm(values: Any) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values))


def is_valid(valid: Tensor | None, b: int, y: int, x: int) -> bool:
    return valid is None or bool(valid[b, y, x])


def energy(maps: np.ndarray, b: int, y: int, x: int) -> float:
    return math.fsum(float(v) ** 2 for v in maps[b, :, y, x]) / maps.shape[1]


def attention_oracle(
    student: Tensor, teacher: Tensor, numerics: str, valid: Tensor | None = None
) -> float:
    batch, _, height, width = student.shape
    maps = []
    for features in (student.numpy(), teacher.numpy()):
        attention = np.zeros((batch, height, width))
        for b in range(batch):
            for y in range(height):
                for x in range(width):
                    if numerics == "released" or is_valid(valid, b, y, x):
                        attention[b, y, x] = energy(features, b, y, x)
        for b in range(batch):
            if numerics == "released":
                for x in range(width):
                    attention[b, :, x] /= max(norm(attention[b, :, x]), 1e-12)
            else:
                attention[b] /= max(norm(attention[b].ravel()), 1e-12)
        maps.append(attention)
    squares = [(s - t) ** 2 for s, t in zip(maps[0].ravel(), maps[1].ravel(), strict=True)]
    return math.fsum(squares) / (batch * height * width if numerics == "released" else batch)


def nodes_of(
    features: np.ndarray, b: int, window: tuple[int, int], numerics: str, valid: Tensor | None
) -> list[np.ndarray | None]:
    """One vector a patch, None for a patch outside the image."""
    channels, height, width = features.shape[1:]
    nodes: list[np.ndarray | None] = []
    for top in range(0, height, window[0]):
        for left in range(0, width, window[1]):
            pixels = [
                features[b, :, y, x]
                for y in range(top, min(top + window[0], height))
                for x in range(left, min(left + window[1], width))
                if numerics == "released" or is_valid(valid, b, y, x)
            ]
            if not pixels:
                nodes.append(None)
                continue
            columns = [[float(p[c]) for p in pixels] for c in range(channels)]
            pool = max if numerics == "released" else (lambda c: math.fsum(c) / len(c))
            nodes.append(np.array([pool(column) for column in columns]))
    return nodes


def pairwise_oracle(
    student: Tensor,
    teacher: Tensor,
    numerics: str,
    valid: Tensor | None = None,
    patch: int | None = None,
) -> float:
    batch, _, height, width = student.shape
    side = (0 if numerics == "released" else 2) if patch is None else patch
    window = (side, side) if side else (max(1, height // 2), max(1, width // 2))
    shift = 1e-8 if numerics == "released" else 0.0
    total = 0.0
    for b in range(batch):
        found = []
        for features in (student.numpy(), teacher.numpy()):
            nodes = nodes_of(features, b, window, numerics, valid)
            units = [n / (norm(n) + shift) for n in nodes if n is not None]
            found.append([[float(m @ n) for m in units] for n in units])
        count = len(found[0])
        squares = [
            (found[0][m][n] - found[1][m][n]) ** 2 for m in range(count) for n in range(count)
        ]
        total += math.fsum(squares) / max(count, 1) ** 2
    return total / batch


def correlation_oracle(
    student: Tensor, teacher: Tensor, numerics: str, valid: Tensor | None = None
) -> float:
    batch, classes, height, width = student.shape
    total = 0.0
    for b in range(batch):
        matrices = []
        for logits in (student.numpy(), teacher.numpy()):
            matrix = np.zeros((classes, classes))
            for i in range(classes):
                for j in range(classes):
                    matrix[i, j] = math.fsum(
                        float(logits[b, i, y, x] * logits[b, j, y, x])
                        for y in range(height)
                        for x in range(width)
                        if numerics == "released" or is_valid(valid, b, y, x)
                    )
            for row in matrix:
                row /= max(norm(row), 1e-12)
            matrices.append(matrix)
        total += float(((matrices[0] - matrices[1]) ** 2).sum())
    return total / (classes * batch)


ORACLES: dict[str, Callable[..., float]] = {
    "attention": attention_oracle,
    "pairwise": pairwise_oracle,
    "correlation": correlation_oracle,
}


def pair(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Student and teacher, with another number of channels where the loss allows it."""
    batch, channels, *size = shape
    more = channels + 3 if name in ANY_CHANNELS else channels
    return draw(shape, 1), draw((batch, more, *size), 2)


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_equals_loop(name: str, numerics: str, shape: tuple[int, ...], with_valid: bool) -> None:
    student, teacher = pair(name, shape)
    valid = draw_valid(shape) if with_valid else None
    expected = ORACLES[name](student, teacher, numerics, valid)
    loss = LOSSES[name](student, teacher, numerics=numerics, valid=valid)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-13)
    single = LOSSES[name](student.float(), teacher.float(), numerics=numerics, valid=valid)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("patch", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_pairwise_patch_equals_loop(size: tuple[int, int], patch: int, with_valid: bool) -> None:
    student, teacher = pair("pairwise", (2, 3, *size))
    valid = draw_valid((2, 3, *size)) if with_valid else None
    expected = pairwise_oracle(student, teacher, "described", valid, patch)
    loss = pairwise_loss(student, teacher, patch=patch, valid=valid)
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-13)


def test_attention_by_hand() -> None:
    student = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).sqrt()[None, None]  # energies 3, 4 in a column
    teacher = torch.tensor([[4.0, 0.0], [3.0, 0.0]]).sqrt()[None, None]
    # norm 5: (0.6 - 0.8)^2 + (0.8 - 0.6)^2, over one image or over four pixels
    assert attention_loss(student, teacher).item() == pytest.approx(0.08)
    assert attention_loss(student, teacher, numerics="released").item() == pytest.approx(0.02)


def test_released_attention_is_blind_to_the_strength_of_a_column() -> None:
    student, teacher = pair("attention", (2, 3, 5, 4))
    columns = torch.tensor([1.0, 5.0, 0.2, 9.0], dtype=torch.float64)
    for numerics, same in (("released", True), ("described", False)):
        before = attention_loss(student, teacher, numerics=numerics)
        after = attention_loss(student * columns, teacher, numerics=numerics)
        assert math.isclose(before.item(), after.item(), rel_tol=1e-9) == same


def test_pairwise_by_hand() -> None:
    # two nodes at an angle of 90 degrees for the student, 60 for the teacher
    student = torch.tensor([[5.0, 0.0], [0.0, 2.0]])[None, :, None]
    teacher = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]])[None, :, None]
    loss = pairwise_loss(student, teacher, patch=1)
    assert loss.item() == pytest.approx(2 * 0.5**2 / 4)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_pairwise_gradient_through_the_norm(numerics: str) -> None:
    """Through the norm, no pull along a node; with a norm that is a constant, there is one."""
    nodes = draw((1, 3, 2, 2), 1).requires_grad_()
    pairwise_loss(nodes, draw((1, 3, 2, 2), 2), numerics=numerics,
                  **({"patch": 1} if numerics == "described" else {})).backward()  # fmt: skip
    along = (nodes * nodes.grad).sum(dim=1).abs().max().item()
    assert (along < 1e-12) == (numerics == "described")
    assert nodes.grad.abs().max().item() > 1e-4


def test_released_pairwise_gradient_takes_the_norm_as_a_constant() -> None:
    student, teacher = draw((1, 3, 2, 2), 1), draw((1, 3, 2, 2), 2)
    lengths = student.norm(dim=1, keepdim=True)

    def with_constant_norm(maps: Tensor) -> Tensor:
        directions = (maps / lengths).flatten(2)[0]
        other = (teacher / teacher.norm(dim=1, keepdim=True)).flatten(2)[0]
        return (directions.T @ directions - other.T @ other).square().sum() / 16

    gradients = []
    for function in (
        with_constant_norm,
        lambda maps: pairwise_loss(maps, teacher, numerics="released"),
    ):
        leaf = student.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf), leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=30, deadline=None)
@given(
    arrays(
        np.float64,
        array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
        elements=st.floats(-30, 30),
    ),
    st.sampled_from(NUMERICS),
    st.floats(0.1, 20),
)
def test_bounds_and_scale(name: str, values: np.ndarray, numerics: str, scale: float) -> None:
    student = torch.from_numpy(values)
    teacher = student.flip(1) * 0.5 + student.roll(1, 3)
    loss = LOSSES[name](student, teacher, numerics=numerics).item()
    assert 0 <= loss <= {"attention": 2, "pairwise": 4, "correlation": 4}[name] + 1e-9
    if student.abs().max() > 1e-2 and student.abs().min() > 1e-2:
        # directions only: neither map's size matters
        scaled = LOSSES[name](scale * student, teacher, numerics=numerics).item()
        assert scaled == pytest.approx(loss, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_no_loss_and_no_gradient_at_the_teacher(
    name: str, numerics: str, with_valid: bool, dtype: torch.dtype
) -> None:
    teacher = draw((2, 4, 5, 5)).to(dtype)
    student = teacher.clone().requires_grad_()
    valid = draw_valid(teacher.shape) if with_valid else None
    loss = LOSSES[name](student, teacher, numerics=numerics, valid=valid)
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(("name", "numerics"), [c for c in BOTH if c != ("pairwise", "released")])
def test_gradient_equals_differences(name: str, numerics: str, with_valid: bool) -> None:
    shape = (2, 3, 4, 3)
    _, teacher = pair(name, shape)
    valid = draw_valid(shape) if with_valid else None

    def loss(student: Tensor) -> Tensor:
        return LOSSES[name](student, teacher, numerics=numerics, valid=valid)

    student = draw(shape, 1, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(loss(student), student)
    assert float(gradient.abs().max()) > 1e-5


@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_gradient_reaches_the_student_only(name: str, numerics: str) -> None:
    student, teacher = (maps.requires_grad_() for maps in pair(name, (2, 3, 4, 4)))
    LOSSES[name](student, teacher, numerics=numerics).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_small_precisions_are_computed_in_float32(
    name: str, numerics: str, dtype: torch.dtype
) -> None:
    student, teacher = (300 * maps.to(dtype) for maps in pair(name, (2, 4, 6, 6)))
    student.requires_grad_()
    loss = LOSSES[name](student, teacher, numerics=numerics)
    loss.backward()
    assert loss.dtype == torch.float32
    in_full = LOSSES[name](student.float(), teacher.float(), numerics=numerics)
    assert loss.item() == pytest.approx(in_full.item())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_autocast_does_not_lower_the_precision(name: str, numerics: str) -> None:
    student, teacher = (maps.float() for maps in pair(name, (2, 4, 8, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](student, teacher, numerics=numerics)
    torch.testing.assert_close(loss, LOSSES[name](student, teacher, numerics=numerics))


@pytest.mark.parametrize("value", [0.0, 0.7, 1e4])
@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_constant_maps_have_finite_gradients(name: str, numerics: str, value: float) -> None:
    student = torch.full((2, 3, 5, 4), value, requires_grad=True)
    loss = LOSSES[name](student, draw((2, 3, 5, 4)).float(), numerics=numerics)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_padding_neither_counts_nor_learns(name: str) -> None:
    shape = (2, 3, 6, 8)
    student, teacher = pair(name, shape)
    valid = draw_valid(shape)
    valid[0, 4:] = False  # whole patches, too
    expected = LOSSES[name](student, teacher, valid=valid)
    outside = ~valid[:, None].expand(shape)
    student = student.masked_fill(outside, 1e4).requires_grad_()
    teacher = teacher.masked_fill(~valid[:, None], -1e4)
    loss = LOSSES[name](student, teacher, valid=valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert bool((student.grad[outside] == 0).all())
    assert float(student.grad[~outside].abs().min()) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_padding_equals_a_smaller_map(name: str) -> None:
    student, teacher = pair(name, (2, 3, 8, 6))
    valid = torch.zeros(2, 8, 6, dtype=torch.bool)
    valid[:, :4, :5] = True
    torch.testing.assert_close(
        LOSSES[name](student, teacher, valid=valid),
        LOSSES[name](student[:, :, :4, :5], teacher[:, :, :4, :5]),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_of_padding_only_counts_as_zero(name: str) -> None:
    student, teacher = pair(name, (2, 3, 4, 4))
    student.requires_grad_()
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1] = False
    loss = LOSSES[name](student, teacher, valid=valid)
    loss.backward()
    torch.testing.assert_close(loss, LOSSES[name](student[:1], teacher[:1]) / 2)
    assert bool((student.grad[1] == 0).all())


@pytest.mark.parametrize("name", LOSSES)
def test_released_never_masks_padding(name: str) -> None:
    shape = (2, 3, 4, 6)
    student, teacher = pair(name, shape)
    valid = draw_valid(shape)
    released = LOSSES[name](student, teacher, numerics="released", valid=valid)
    assert torch.equal(released, LOSSES[name](student, teacher, numerics="released"))
    without = LOSSES[name](student, teacher)
    assert not torch.equal(LOSSES[name](student, teacher, valid=valid), without)


def test_correlation_numerics_agree_without_padding() -> None:
    student, teacher = draw((2, 5, 4, 4), 1), draw((2, 5, 4, 4), 2)
    assert torch.equal(
        correlation_loss(student, teacher), correlation_loss(student, teacher, numerics="released")
    )


@pytest.mark.parametrize("name", LOSSES)
def test_inside_of_another_size_is_taken_by_nearest_pixel(name: str) -> None:
    student, teacher = pair(name, (2, 3, 4, 6))
    valid = draw_valid((2, 1, 16, 24))
    assert torch.equal(
        LOSSES[name](student, teacher, valid=valid),
        LOSSES[name](student, teacher, valid=valid[:, ::4, ::4]),
    )


@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_memory_layout_does_not_matter(name: str, numerics: str) -> None:
    student, teacher = draw((2, 4, 5, 6), 1), draw((2, 4, 5, 6), 2)
    view = student.contiguous(memory_format=torch.channels_last)
    assert not view.is_contiguous()
    loss = LOSSES[name]
    torch.testing.assert_close(
        loss(view, teacher, numerics=numerics), loss(student, teacher, numerics=numerics)
    )
    torch.testing.assert_close(
        loss(teacher, view, numerics=numerics), loss(teacher, student, numerics=numerics)
    )


@pytest.mark.parametrize(("name", "numerics"), BOTH)
def test_module_equals_function(name: str, numerics: str) -> None:
    student, teacher = pair(name, (2, 3, 6, 5))
    valid = draw_valid((2, 3, 6, 5))
    module = MODULES[name](numerics=numerics)
    for where in (None, valid):
        expected = LOSSES[name](student, teacher, numerics=numerics, valid=where)
        assert torch.equal(module(student, teacher, where), expected)
    default = MODULES[name]()(student, teacher)
    assert torch.equal(default, LOSSES[name](student, teacher, numerics="described"))
    assert module.needs == "features"
    assert not list(module.parameters())


def test_the_patch_is_kept() -> None:
    student, teacher = draw((2, 3, 8, 8), 1), draw((2, 3, 8, 8), 2)
    assert (PairwiseLoss().patch, PairwiseLoss(numerics="released").patch) == (2, 0)
    expected = pairwise_loss(student, teacher, patch=4)
    assert torch.equal(PairwiseLoss(4)(student, teacher), expected)
    assert torch.equal(pairwise_loss(student, teacher, patch=0), expected)  # 8 / 2


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((2, 3, 4, 4), (2, 3, 8, 8), "interpolate"),
        ((2, 3, 4, 4), (2, 5, 8, 4), "interpolate"),
        ((2, 3, 4, 4), (1, 3, 4, 4), "same B"),
        ((3, 4, 4), (3, 4, 4), "(B, D, H, W)"),
        ((2, 3, 4), (2, 3, 4, 4), "(B, D, H, W)"),
    ],
)
@pytest.mark.parametrize("name", ANY_CHANNELS)
def test_sizes_that_differ_are_named(
    name: str, student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        LOSSES[name](torch.zeros(student), torch.zeros(teacher))
    message = str(caught.value)
    assert all(part in message for part in (str(student), str(teacher), words))
    assert "\n" not in message


def test_correlation_needs_the_same_classes() -> None:
    with pytest.raises(UserError, match=r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*one shape"):
        correlation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


def test_bad_patches_are_refused() -> None:
    maps = draw((1, 2, 4, 4))
    for call in (lambda **o: pairwise_loss(maps, maps, **o), PairwiseLoss):
        with pytest.raises(UserError, match="patch is -1"):
            call(patch=-1)
        with pytest.raises(UserError, match=r"patch is 2, but numerics released.*0 only"):
            call(patch=2, numerics="released")
        call(patch=0, numerics="released")
