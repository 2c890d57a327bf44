"""Attention, pair-wise similarity, inter-channel correlation: their laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from draws import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import (
    PairwiseLoss,
    attention_loss,
    correlation_loss,
    pairwise_loss,
)
from aicsd.losses._numerics import Numerics

LOSSES: dict[str, Callable[..., Tensor]] = {
    "attention": attention_loss,
    "pairwise": pairwise_loss,
    "correlation": correlation_loss,
}
ANY_CHANNELS = ["attention", "pairwise"]
NUMERICS: list[Numerics] = ["described", "released"]


def pair(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Student and teacher, with another number of channels where the loss allows it."""
    batch, channels, *size = shape
    more = channels + 3 if name in ANY_CHANNELS else channels
    return draw(shape, 1), draw((batch, more, *size), 2)


def test_attention_by_hand() -> None:
    student = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).sqrt()[None, None]  # energies 3, 4 in a column
    teacher = torch.tensor([[4.0, 0.0], [3.0, 0.0]]).sqrt()[None, None]
    # norm 5: (0.6 - 0.8)^2 + (0.8 - 0.6)^2, over one image or over four pixels
    assert attention_loss(student, teacher).item() == pytest.approx(0.08)
    assert attention_loss(student, teacher, numerics="released").item() == pytest.approx(0.02)


def test_released_attention_is_blind_to_the_strength_of_a_column() -> None:
    student, teacher = pair("attention", (2, 3, 5, 4))
    columns = torch.tensor([1.0, 5.0, 0.2, 9.0], dtype=torch.float64)
    for numerics in NUMERICS:
        before = attention_loss(student, teacher, numerics=numerics)
        after = attention_loss(student * columns, teacher, numerics=numerics)
        assert math.isclose(before.item(), after.item(), rel_tol=1e-9) == (numerics == "released")


def test_pairwise_by_hand() -> None:
    # two nodes at an angle of 90 degrees for the student, 60 for the teacher
    student = torch.tensor([[5.0, 0.0], [0.0, 2.0]])[None, :, None]
    teacher = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]])[None, :, None]
    loss = pairwise_loss(student, teacher, patch=1)
    assert loss.item() == pytest.approx(2 * 0.5**2 / 4)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_pairwise_gradient_through_the_norm(numerics: Numerics) -> None:
    """Through the norm, no pull along a node; with a norm that is a constant, there is one."""
    nodes = draw((1, 3, 2, 2), 1).requires_grad_()
    patch = 1 if numerics == "described" else None
    pairwise_loss(nodes, draw((1, 3, 2, 2), 2), patch=patch, numerics=numerics).backward()
    assert nodes.grad is not None
    along = (nodes * nodes.grad).sum(dim=1).abs().max().item()
    assert (along < 1e-12) == (numerics == "described")
    assert nodes.grad.abs().max().item() > 1e-4


def test_released_pairwise_gradient_takes_the_norm_as_a_constant() -> None:
    student, teacher = draw((1, 3, 2, 2), 1), draw((1, 3, 2, 2), 2)
    lengths = student.norm(dim=1, keepdim=True)

    def with_constant_norm(maps: Tensor) -> Tensor:
        directions = (maps / lengths).flatten(2)[0]
        other = (teacher / teacher.norm(dim=1, keepdim=True)).flatten(2)[0]
        difference = directions.T @ directions - other.T @ other
        found: Tensor = difference.square().mean()
        return found

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


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_of_padding_only_counts_as_zero(name: str) -> None:
    student, teacher = pair(name, (2, 3, 4, 4))
    student.requires_grad_()
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1] = False
    loss = LOSSES[name](student, teacher, valid=valid)
    loss.backward()
    torch.testing.assert_close(loss, LOSSES[name](student[:1], teacher[:1]) / 2)
    assert student.grad is not None
    assert bool((student.grad[1] == 0).all())


def test_correlation_numerics_agree_without_padding() -> None:
    student, teacher = draw((2, 5, 4, 4), 1), draw((2, 5, 4, 4), 2)
    assert torch.equal(
        correlation_loss(student, teacher), correlation_loss(student, teacher, numerics="released")
    )


def test_the_patch_is_kept() -> None:
    student, teacher = draw((2, 3, 8, 8), 1), draw((2, 3, 8, 8), 2)
    assert (PairwiseLoss().patch, PairwiseLoss(numerics="released").patch) == (2, 0)
    expected = pairwise_loss(student, teacher, patch=4)
    assert torch.equal(PairwiseLoss(4)(student, teacher), expected)
    assert torch.equal(pairwise_loss(student, teacher, patch=0), expected)  # 8 / 2


def test_bad_patches_are_refused() -> None:
    maps = draw((1, 2, 4, 4))
    for call in (lambda **o: pairwise_loss(maps, maps, **o), PairwiseLoss):
        with pytest.raises(UserError, match="patch is -1"):
            call(patch=-1)
        with pytest.raises(UserError, match=r"patch is 2, but numerics released.*0 only"):
            call(patch=2, numerics="released")
        call(patch=0, numerics="released")
