"""The analytic gradients, chunk by chunk, against PyTorch's own on plain float64 formulas."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from draws import LAYOUTS, draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aicsd.errors import UserError
from aicsd.losses import (
    _chunks,
    cross_entropy_and_kd_loss,
    cross_entropy_loss,
    icsd_loss,
    pixel_kd_loss,
)
from aicsd.types import IGNORE_INDEX

Loss = Callable[..., Tensor]


def plain_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    labelled = mask != IGNORE_INDEX
    log_p = student.log_softmax(1).permute(0, 2, 3, 1)[labelled]
    if not len(log_p):
        return 0 * student.sum()
    return -log_p[torch.arange(len(log_p)), mask[labelled].long()].mean()


def plain_kd(student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    p, log_q = (teacher / 2).softmax(1), (student / 2).log_softmax(1)
    divergence = F.kl_div(log_q, p, reduction="none").sum(1)
    return 4 * (divergence * valid).sum() / valid.sum().clamp_min(1)


def plain_icsd(student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    def matrix(logits: Tensor) -> Tensor:
        every = []
        for maps, where in zip(logits / 1.5, valid, strict=True):
            rho = maps[:, where if bool(where.any()) else ~where].softmax(1)
            every.append((rho[:, None] * (rho[:, None] / rho[None]).log()).sum(2))
        return F.normalize(torch.stack(every).mean(0), dim=1)

    return (matrix(student) - matrix(teacher)).square().mean()


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "cross_entropy": (lambda s, t, mask, valid: cross_entropy_loss(s, mask), plain_cross_entropy),
    "pixel_kd": (
        lambda s, t, mask, valid: pixel_kd_loss(s, t, temperature=2.0, valid=valid),
        plain_kd,
    ),
    "icsd": (
        lambda s, t, mask, valid: icsd_loss(s, t, temperature=1.5, valid=valid),
        plain_icsd,
    ),
}


def draw_batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of both; a mask that lacks a class; a first image without any label or padding."""
    batch, classes, *size = shape
    generator = torch.Generator().manual_seed(3)
    mask = torch.randint(max(1, classes - 1), (batch, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORE_INDEX
    valid = torch.rand(mask.shape, generator=generator) < 0.7
    if batch > 1:
        mask[0], valid[0] = IGNORE_INDEX, True
        valid[1, : size[0] // 2] = False  # whole chunks of it
    return draw(shape, 1), draw(shape, 2), mask, valid


def value_and_gradient(loss: Loss, student: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = loss(student, *others)
    (gradient,) = torch.autograd.grad(3.0 * value, student)
    return value.detach(), gradient


@pytest.fixture(params=[None, 7, 64])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Pixels in a chunk; None as it comes, which is one chunk for every map here."""
    pixels: int | None = request.param
    if pixels is not None:
        monkeypatch.setattr(_chunks, "CACHE_ELEMENTS", 1)
        monkeypatch.setattr(_chunks, "MIN_CHUNK_PIXELS", pixels)
    return pixels


@pytest.mark.parametrize("shape", [(2, 5, 12, 11), (3, 2, 1, 9), (1, 1, 4, 5), (1, 3, 1, 1)])
@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradient_are_those_of_the_plain_formula(
    name: str, shape: tuple[int, ...], chunk: int | None
) -> None:
    fast, plain = PAIRS[name]
    student, teacher, mask, valid = draw_batch(shape)
    expected = value_and_gradient(plain, student, teacher, mask, valid)
    for change in LAYOUTS.values():
        result = value_and_gradient(fast, change(student), change(teacher), mask, valid)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)
        single = value_and_gradient(fast, change(student.float()), change(teacher), mask, valid)
        assert single[0].dtype == single[1].dtype == torch.float32
        torch.testing.assert_close(single, tuple(x.float() for x in expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_gradcheck_over_several_chunks(name: str, chunk: int | None) -> None:
    fast, _ = PAIRS[name]
    student, *others = draw_batch((2, 3, 3, 5))
    assert torch.autograd.gradcheck(
        lambda z: fast(z, *others), (student.requires_grad_(),), atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_half_logits_are_computed_in_float32(
    name: str, autocast: bool, dtype: torch.dtype, chunk: int | None
) -> None:
    fast, plain = PAIRS[name]
    student, teacher, mask, valid = draw_batch((2, 5, 12, 11))
    student, teacher = student.to(dtype), teacher.to(dtype)
    expected = value_and_gradient(plain, student.double(), teacher.double(), mask, valid)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(fast, student, teacher, mask, valid)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=1e-7)
    # one rounding to the small precision at the end, none before
    torch.testing.assert_close(gradient, expected[1].to(dtype), rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("name", PAIRS)
def test_extreme_logits(name: str, size: float, chunk: int | None) -> None:
    fast, _ = PAIRS[name]
    student, teacher, mask, valid = draw_batch((2, 5, 12, 11))
    pair = [maps.clamp(-2, 2) * (size / 2) for maps in (student, teacher)]
    wide = value_and_gradient(fast, *pair, mask, valid)
    narrow = value_and_gradient(fast, *(maps.float() for maps in pair), mask, valid)
    for values in (*wide, *narrow):
        assert bool(values.isfinite().all())
    assert float(narrow[0]) == pytest.approx(float(wide[0]), rel=2e-5)
    torch.testing.assert_close(
        narrow[1].double(), wide[1], rtol=0.01, atol=1e-4 * float(wide[1].abs().max())
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("size", [(64, 63), (129, 129)])
def test_icsd_in_float32_loses_no_digits(size: tuple[int, int], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand((2, 6, *size), generator=generator) * 100 - 50 for _ in range(2)]
    options: dict[str, Any] = {"temperature": temperature}
    loss = lambda s, t: icsd_loss(s, t, **options)  # noqa: E731
    single = value_and_gradient(loss, *pair)
    double = value_and_gradient(loss, *(maps.double() for maps in pair))
    # the loss and its gradient are made of differences of matrix entries, sqrt(loss) in size: what
    # they lose is the rounding of an entry, relative to that
    rounding = 2 * torch.finfo(torch.float32).eps / float(double[0]) ** 0.5
    assert float(single[0]) == pytest.approx(float(double[0]), rel=2 * rounding)
    error = (single[1] - double[1]).norm() / double[1].norm()
    assert float(error) < rounding < 5e-5


@pytest.mark.parametrize("with_valid", [False, True])
def test_both_pixel_terms_in_one_pass(with_valid: bool, chunk: int | None) -> None:
    student, teacher, mask, valid = draw_batch((2, 5, 12, 11))
    where = valid if with_valid else None

    def apart(z: Tensor, *others: Tensor) -> Tensor:
        return 0.3 * cross_entropy_loss(z, mask) + 2 * pixel_kd_loss(z, teacher, valid=where)

    def together(z: Tensor, *others: Tensor) -> Tensor:
        entropy, divergence = cross_entropy_and_kd_loss(z, teacher, mask, valid=where)
        return 0.3 * entropy + 2 * divergence

    torch.testing.assert_close(
        value_and_gradient(together, student), value_and_gradient(apart, student)
    )


def test_each_of_both_pixel_terms_has_its_own_gradient() -> None:
    student, teacher, mask, _ = draw_batch((2, 5, 12, 11))
    for index, loss in enumerate((cross_entropy_loss, pixel_kd_loss)):
        other = mask if loss is cross_entropy_loss else teacher
        both = lambda z, index=index: cross_entropy_and_kd_loss(z, teacher, mask)[index]  # noqa: E731
        torch.testing.assert_close(
            value_and_gradient(both, student),
            value_and_gradient(lambda z, f=loss, o=other: f(z, o), student),
        )
    with pytest.raises(UserError, match=r"\(2, 5, 12, 11\).*\(2, 5, 6, 6\)"):
        cross_entropy_and_kd_loss(student, torch.zeros(2, 5, 6, 6), mask)


@pytest.mark.parametrize("name", PAIRS)
def test_a_second_derivative_is_refused(name: str) -> None:
    student, *others = draw_batch((2, 3, 4, 4))
    value = PAIRS[name][0](student.requires_grad_(), *others)
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    with pytest.raises(UserError, match="differentiated twice"):
        (gradient.sum() + student.square().sum()).backward()


@pytest.mark.parametrize("name", PAIRS)
def test_the_mask_and_the_logits_stay_as_they_are(name: str) -> None:
    batch = draw_batch((2, 5, 12, 11))
    copies = [part.clone() for part in batch]
    value_and_gradient(PAIRS[name][0], *batch)
    assert all(torch.equal(part, copy) for part, copy in zip(batch, copies, strict=True))


def test_compiles_without_a_graph_break() -> None:
    def every(z: Tensor, *others: Tensor) -> Tensor:
        values = torch.stack([fast(z, *others) for fast, _ in PAIRS.values()])
        return values @ torch.tensor([1.0, 10.0, 100.0], dtype=values.dtype)

    student, *others = draw_batch((2, 3, 12, 25))
    torch._dynamo.reset()
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    expected = value_and_gradient(every, student, *others)
    torch.testing.assert_close(value_and_gradient(compiled, student, *others), expected)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that come into being while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        for old in tree_leaves((args, kwargs)):
            if isinstance(old, Tensor):
                self.known.add(old.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for new in tree_leaves(result):
            if isinstance(new, Tensor) and new.untyped_storage() not in self.known:
                storage = new.untyped_storage()
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def peak_maps(loss: Loss, student: Tensor, *others: Tensor) -> float:
    """Largest extra memory of a forward and backward pass, in logit maps."""
    student = student.float().requires_grad_()
    others = tuple(x.float() if x.is_floating_point() else x for x in others)
    with PeakMemory() as memory:
        torch.autograd.grad(loss(student, *others), student)
    peak: float = memory.peak / (student.numel() * 4)
    return peak


@pytest.mark.parametrize(
    ("name", "limit"), [("cross_entropy", 1.35), ("pixel_kd", 1.25), ("icsd", 1.2)]
)
def test_extra_memory_is_little_more_than_the_gradient(name: str, limit: float) -> None:
    fast, plain = PAIRS[name]
    shape = (2, 21, 385, 385)
    valid = torch.ones(2, 385, 385, dtype=torch.bool)
    others = draw(shape, 2), torch.zeros(2, 385, 385, dtype=torch.uint8), valid
    assert 1 <= peak_maps(fast, draw(shape, 1), *others) <= limit
    small = draw_batch((2, 5, 30, 30))
    assert peak_maps(plain, *small) > 2.5  # the ruler measures
