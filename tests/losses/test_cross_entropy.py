"""Cross entropy on labelled pixels: against a loop in NumPy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from aicsd.errors import UserError
from aicsd.losses import CrossEntropyLoss, cross_entropy_loss
from aicsd.types import IGNORE_INDEX

SHAPES = [(1, 2, 1, 1), (2, 3, 4, 5), (3, 1, 4, 4), (4, 21, 2, 3)]


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def draw_mask(
    shape: tuple[int, ...], seed: int = 0, ignored: float = 0.3, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    batch, classes, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(classes, (batch, height, width), generator=generator)
    drop = torch.rand(batch, height, width, generator=generator) < ignored
    mask = mask.masked_fill(drop, ignore_index)
    mask[0, 0, 0] = 1 if ignore_index == 0 else 0
    return mask


def oracle(logits: Tensor, mask: Tensor, ignore_index: int = IGNORE_INDEX) -> float:
    terms = []
    for (b, y, x), label in np.ndenumerate(mask.numpy()):
        if label != ignore_index:
            z = logits[b, :, y, x].numpy()
            terms.append(math.log(np.exp(z - z[label]).sum()))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize(
    ("shape", "ignore_index"),
    [(shape, index) for shape in SHAPES for index in (255, 0, 1) if index == 255 or shape[1] > 1],
)
def test_equals_loop(shape: tuple[int, ...], ignore_index: int) -> None:
    logits, mask = draw(shape), draw_mask(shape, ignore_index=ignore_index)
    expected = oracle(logits, mask, ignore_index)
    loss = cross_entropy_loss(logits, mask, ignore_index=ignore_index)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    single = cross_entropy_loss(logits.float(), mask, ignore_index=ignore_index)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_equals_log_loss_of_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, mask = draw((2, 5, 6, 7)), draw_mask((2, 5, 6, 7))
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[mask != IGNORE_INDEX].numpy()
    labels = mask[mask != IGNORE_INDEX].numpy()
    expected = metrics.log_loss(labels, probabilities, labels=range(5))
    assert float(cross_entropy_loss(logits, mask)) == pytest.approx(expected, rel=1e-9)


def test_uniform_logits_give_log_of_the_class_count() -> None:
    loss = cross_entropy_loss(torch.zeros(2, 11, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(11))


def test_a_sure_and_right_prediction_costs_nothing() -> None:
    mask = draw_mask((2, 3, 4, 4), ignored=0.0)
    logits = torch.nn.functional.one_hot(mask, 3).permute(0, 3, 1, 2).float() * 100
    assert float(cross_entropy_loss(logits, mask)) == 0


def test_mean_is_over_pixels_not_over_images() -> None:
    logits, mask = draw((2, 3, 4, 4)), draw_mask((2, 3, 4, 4), ignored=0.0)
    mask[1, 1:] = IGNORE_INDEX
    parts = [cross_entropy_loss(logits[b : b + 1], mask[b : b + 1]) for b in range(2)]
    expected = (16 * parts[0] + 4 * parts[1]) / 20
    torch.testing.assert_close(cross_entropy_loss(logits, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_nothing_labelled_gives_zero_and_zero_gradient(dtype: torch.dtype) -> None:
    logits = draw((2, 3, 4, 4)).to(dtype).requires_grad_()
    loss = cross_entropy_loss(logits, torch.full((2, 4, 4), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert bool((logits.grad == 0).all())


def test_ignored_pixels_neither_count_nor_learn() -> None:
    logits, mask = draw((2, 3, 4, 4)), draw_mask((2, 3, 4, 4))
    ignored = (mask == IGNORE_INDEX)[:, None].expand(logits.shape)
    changed = (logits + 1e4 * ignored * draw((2, 3, 4, 4), 5)).requires_grad_()
    loss = cross_entropy_loss(changed, mask)
    loss.backward()
    assert torch.equal(loss, cross_entropy_loss(logits, mask))
    assert bool((changed.grad[ignored] == 0).all())
    assert float(changed.grad[~ignored].abs().min()) > 0


def test_gradient_is_prediction_minus_label_and_equals_differences() -> None:
    shape = (2, 3, 3, 4)
    logits, mask = draw(shape, 1, 1.0).requires_grad_(), draw_mask(shape)
    assert torch.autograd.gradcheck(lambda z: cross_entropy_loss(z, mask), (logits,))
    (gradient,) = torch.autograd.grad(cross_entropy_loss(logits, mask), logits)
    labelled = (mask != IGNORE_INDEX)[:, None]
    one_hot = torch.nn.functional.one_hot(mask * labelled[:, 0], 3).permute(0, 3, 1, 2)
    expected = (logits.detach().softmax(1) - one_hot) * labelled / labelled.sum()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [3.0, 50.0, 1e4])
def test_small_precisions_are_computed_in_float32(size: float, dtype: torch.dtype) -> None:
    logits = (draw((2, 4, 6, 6)).clamp(-1, 1) * size).to(dtype).requires_grad_()
    mask = draw_mask((2, 4, 6, 6))
    loss = cross_entropy_loss(logits, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cross_entropy_loss(logits.float(), mask).item())
    assert bool(logits.grad.isfinite().all())


def test_autocast_does_not_lower_the_precision() -> None:
    logits, mask = draw((2, 4, 8, 8)).float(), draw_mask((2, 4, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy_loss(logits, mask)
    torch.testing.assert_close(loss, cross_entropy_loss(logits, mask))


def test_the_sum_over_many_pixels_does_not_overflow_half() -> None:
    logits = torch.zeros(2, 21, 160, 160, dtype=torch.float16)
    loss = cross_entropy_loss(logits, torch.zeros(2, 160, 160, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(21), rel=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (13, 22), (2, 3)])
def test_native_resolution_takes_the_nearest_label(size: tuple[int, int]) -> None:
    logits = draw((2, 5, 4, 6))
    mask = draw_mask((2, 5, *size))
    rows = [y * size[0] // 4 for y in range(4)]
    columns = [x * size[1] // 6 for x in range(6)]
    small = mask[:, rows][:, :, columns]
    assert not bool((small == small[0, 0, 0]).all())
    assert torch.equal(cross_entropy_loss(logits, mask), cross_entropy_loss(logits, small))
    assert float(cross_entropy_loss(logits, mask)) == pytest.approx(oracle(logits, small))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_mask(dtype: torch.dtype) -> None:
    logits, mask = draw((2, 3, 4, 4)), draw_mask((2, 3, 4, 4))
    assert torch.equal(cross_entropy_loss(logits, mask.to(dtype)), cross_entropy_loss(logits, mask))
    large = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(
        cross_entropy_loss(logits, large.to(dtype)), cross_entropy_loss(logits, mask)
    )


def test_memory_layout_does_not_matter() -> None:
    logits, mask = draw((2, 4, 5, 6)), draw_mask((2, 4, 5, 6))
    view = logits.contiguous(memory_format=torch.channels_last)
    flipped = mask.flip(2).flip(2).transpose(1, 2).contiguous().transpose(1, 2)
    assert not view.is_contiguous()
    assert not flipped.is_contiguous()
    torch.testing.assert_close(cross_entropy_loss(view, flipped), cross_entropy_loss(logits, mask))


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_module_equals_function(ignore_index: int) -> None:
    logits, mask = draw((2, 3, 4, 4)), draw_mask((2, 3, 4, 4), ignore_index=ignore_index)
    module = CrossEntropyLoss(ignore_index)
    expected = cross_entropy_loss(logits, mask, ignore_index=ignore_index)
    assert torch.equal(module(logits, mask), expected)
    assert module.needs == "labels"
    assert CrossEntropyLoss().ignore_index == IGNORE_INDEX


@pytest.mark.parametrize(
    ("logits", "mask"),
    [((2, 3, 4, 4), (1, 4, 4)), ((3, 4, 4), (4, 4)), ((2, 3, 4, 4), (2, 1, 4, 4))],
)
def test_shapes_that_do_not_belong_together_are_named(
    logits: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        cross_entropy_loss(torch.zeros(logits), torch.zeros(mask, dtype=torch.long))
    assert str(logits) in str(caught.value)
    assert str(mask) in str(caught.value)
