"""``numerics: released``: the released code, bug for bug, against loops; what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from draws import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import (
    AttentionLoss,
    CorrelationLoss,
    CrossEntropyLoss,
    ICSDLoss,
    PairwiseLoss,
    PixelKDLoss,
    cross_entropy_loss,
    icsd_loss,
    pixel_kd_loss,
)
from aicsd.losses.icsd import released_ics_matrix
from aicsd.types import IGNORE_INDEX

SHAPES = [(1, 2, 1, 1), (2, 3, 4, 5), (3, 1, 4, 4), (1, 6, 7, 3), (2, 19, 2, 3)]
MODULES = (
    AttentionLoss,
    CorrelationLoss,
    CrossEntropyLoss,
    ICSDLoss,
    PairwiseLoss,
    PixelKDLoss,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_icsd_equals_loop(shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    matrix = released_ics_matrix(student)
    np.testing.assert_allclose(
        matrix.numpy(), oracles.released_ics_matrix(student), rtol=1e-9, atol=1e-12
    )
    expected = oracles.icsd(student, teacher, None, numerics="released")
    loss = icsd_loss(student, teacher, numerics="released")
    assert loss.item() == pytest.approx(expected, rel=1e-8, abs=1e-14)
    single = icsd_loss(student.float(), teacher.float(), numerics="released")
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_icsd_equals_the_divergence_of_torch() -> None:
    """The same with torch's own KLDivLoss, called as the released code calls it."""
    student, teacher = draw((3, 5, 4, 6), 1), draw((3, 5, 4, 6), 2)
    matrices = []
    for logits in (student, teacher):
        q = logits.softmax(dim=2)
        matrix = torch.zeros(5, 5, dtype=torch.float64)
        for i in range(5):
            for j in range(i, 5):
                matrix[i, j] = matrix[j, i] = F.kl_div(q[:, i], q[:, j], reduction="batchmean")
        matrices.append(F.normalize(matrix, dim=1))
    expected = (matrices[0] - matrices[1]).square().mean() / 3
    torch.testing.assert_close(icsd_loss(student, teacher, numerics="released"), expected)


def test_icsd_is_nearly_the_entropies_of_the_classes() -> None:
    coarse = draw((2, 7, 4, 4), scale=2.0)
    logits = F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=True)
    q = logits.softmax(dim=2)
    entropy = -(q * q.log()).sum(dim=(0, 2, 3)) / 2
    larger = torch.maximum(*torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij"))
    torch.testing.assert_close(
        released_ics_matrix(logits), F.normalize(-entropy[larger], dim=1), rtol=0.02, atol=0
    )


def test_icsd_has_another_value_than_described() -> None:
    student, teacher = draw((2, 4, 6, 6), 1), draw((2, 4, 6, 6), 2)
    released = float(icsd_loss(student, teacher, numerics="released"))
    assert abs(released - float(icsd_loss(student, teacher))) > 0.1 * released


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 3, 2), (2, 4, 1, 3)])
def test_icsd_gradient_equals_differences(shape: tuple[int, ...]) -> None:
    teacher = draw(shape, 2, 1.0)

    def loss(student: Tensor) -> Tensor:
        return icsd_loss(student, teacher, numerics="released")

    assert torch.autograd.gradcheck(loss, (draw(shape, 1, 1.0).requires_grad_(),), atol=1e-7)


@pytest.mark.parametrize("classes", [2, 19, 21, 40])
def test_icsd_has_no_fixed_number_of_classes(classes: int) -> None:
    student = draw((2, classes, 4, 4), 1).requires_grad_()
    icsd_loss(student, draw((2, classes, 4, 4), 2), numerics="released").backward()
    assert student.grad is not None
    assert bool((student.grad.abs().amax(dim=(0, 2, 3)) > 0).all())


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_cross_entropy_is_divided_once_more_by_the_batch(batch: int) -> None:
    logits = draw((batch, 4, 5, 6))
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(4, (batch, 5, 6), generator=generator)
    mask[:, :2] = IGNORE_INDEX
    loss = cross_entropy_loss(logits, mask, numerics="released")
    torch.testing.assert_close(loss, cross_entropy_loss(logits, mask) / batch)


LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {"icsd": icsd_loss, "pixel_kd": pixel_kd_loss}


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float64,
        array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
        elements=st.floats(-30, 30),
    ),
    st.sampled_from(sorted(LOGIT_LOSSES)),
)
def test_zero_at_the_teacher_and_never_negative(values: np.ndarray, name: str) -> None:
    teacher = torch.from_numpy(values)
    student = teacher.clone().requires_grad_()
    loss = LOGIT_LOSSES[name](student, teacher, numerics="released")
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-14
    assert LOGIT_LOSSES[name](teacher.flip(1), teacher, numerics="released").item() >= -1e-12


@pytest.mark.parametrize("module", MODULES)
def test_described_is_the_default_and_unknown_numerics_are_refused(module: Any) -> None:
    assert module().numerics == "described"
    with pytest.raises(UserError, match=r"numerics is 'paper'; allowed are described, released"):
        module(numerics="paper")


@pytest.mark.parametrize(
    ("module", "option", "only"),
    [
        (ICSDLoss, {"temperature": 2.0}, "1.0"),
        (ICSDLoss, {"normalize_rows": False}, "True"),
        (ICSDLoss, {"per_image": True}, "False"),
        (PixelKDLoss, {"reduction": "pixel_mean"}, "'element_mean'"),
        (PixelKDLoss, {"reduction": "image_sum"}, "'element_mean'"),
        (PairwiseLoss, {"patch": 4}, "0"),
    ],
)
def test_what_the_published_code_cannot_do_is_refused(
    module: Any, option: dict[str, Any], only: str
) -> None:
    module(**option)
    ((name, value),) = option.items()
    with pytest.raises(UserError) as caught:
        module(numerics="released", **option)
    message = str(caught.value)
    assert f"{name} is {value!r}, but numerics released" in message
    assert f"{only} only" in message
    assert "\n" not in message
    functions: dict[type, Callable[..., Tensor]] = {ICSDLoss: icsd_loss, PixelKDLoss: pixel_kd_loss}
    function = functions.get(module)
    if function is not None:
        with pytest.raises(UserError, match="numerics released"):
            function(draw((1, 2, 2, 2)), draw((1, 2, 2, 2)), numerics="released", **option)
