"""The training step: the sum of the terms by hand, and the maps that terms compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES
from distilled_networks import CLASSES, Net, aligned, make_batch, upsample
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller, weighted_sum
from aicsd.errors import UserError
from aicsd.losses import attention_loss, correlation_loss, pairwise_loss
from aicsd.methods import load_recipe
from aicsd.teacher import Teacher
from aicsd.types import IGNORE_INDEX, SegOutput


def ics(logits: Tensor, valid: Tensor) -> Tensor:
    """Row-normalised mean over the batch of the matrices of KLs."""
    matrices = []
    for maps, where in zip(logits, valid, strict=True):
        log_rho = maps[:, where].log_softmax(1)
        rho = log_rho.exp()
        kl = (rho[:, None] * (log_rho[:, None] - log_rho[None])).sum(2)
        matrices.append(kl)
    mean = torch.stack(matrices).mean(0)
    norms: Tensor = mean.norm(dim=1, keepdim=True)
    return mean / norms


def terms_by_hand(
    student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Values of the terms, from double logits, mask and valid of one size."""
    labelled = mask != IGNORE_INDEX
    log_student, log_teacher = student.log_softmax(1), teacher.log_softmax(1)
    by_pixel = log_student.permute(0, 2, 3, 1)[labelled]
    kl = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return {
        "cross_entropy": -by_pixel[torch.arange(len(by_pixel)), mask[labelled]].mean(),
        "icsd": (ics(student, valid) - ics(teacher, valid)).square().mean(),
        "pixel_kd": kl[valid].mean(),
    }


@pytest.mark.parametrize("teacher_stride", [4, 8])
@pytest.mark.parametrize("resolution", ["as shipped", "native", "input"])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_loss_is_the_weighted_sum_by_hand(
    progress: float, resolution: str, teacher_stride: int
) -> None:
    recipe = load_recipe("aicsd")
    if resolution != "as shipped":
        recipe = load_recipe("aicsd", {name: {"resolution": resolution} for name in recipe.terms})
    student = aligned(Net(4, seed=1), CLASSES)
    teacher = aligned(Net(teacher_stride, seed=2), CLASSES)
    distiller = Distiller(student, recipe, Teacher(teacher, CLASSES)).eval()
    batch = make_batch()
    result = distiller(batch, progress)

    with torch.no_grad():
        s, t = student(batch.image).logits.double(), teacher(batch.image).logits.double()
    assert s.shape == (2, 3, 8, 12)
    expected = {}
    for name, term in recipe.terms.items():
        if term.resolution == "input":
            pair = upsample(s, (32, 48)), upsample(t, (32, 48))
            values = terms_by_hand(*pair, batch.mask, batch.valid)
        else:
            t_native = t if teacher_stride == 4 else upsample(t, (8, 12))
            values = terms_by_hand(s, t_native, batch.mask[:, ::4, ::4], batch.valid[:, ::4, ::4])
        expected[name] = values[name]
    lambda_ics, lambda_kd = recipe.terms["icsd"].weight, recipe.terms["pixel_kd"].weight
    total = progress * (expected["cross_entropy"] + lambda_ics * expected["icsd"])
    total = total + (1 - progress) * lambda_kd * expected["pixel_kd"]

    assert set(result) == {"loss", *recipe.terms}
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value.item(), rel=1e-4)
        assert not result[name].requires_grad
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-4)
    assert result["loss"].requires_grad


def test_gradient_of_the_loss_is_the_weighted_sum_of_the_gradients() -> None:
    recipe = load_recipe("aicsd", {"icsd": {"weight": 7.0}, "pixel_kd": {"weight": 2.0}})
    teacher = Teacher(aligned(Net(seed=2), CLASSES), CLASSES)
    batch = make_batch()

    def gradient(overrides: dict[str, float] | None) -> Tensor:
        student = aligned(Net(seed=1), CLASSES).eval()
        if overrides is None:
            loss = Distiller(student, recipe, teacher)(batch, 0.25)["loss"]
        else:
            changes = {name: {"weight": w, "schedule": "constant"} for name, w in overrides.items()}
            loss = Distiller(student, load_recipe("aicsd", changes), teacher)(batch, 0.9)["loss"]
        loss.backward()
        found = student.net.get_parameter("conv.weight").grad
        assert found is not None
        return found

    parts = {
        name: gradient({other: float(other == name) for other in recipe.terms})
        for name in recipe.terms
    }
    for part in parts.values():
        assert part.abs().max() > 1e-6
    expected = 0.25 * parts["cross_entropy"] + 0.25 * 7 * parts["icsd"]
    expected = expected + 0.75 * 2 * parts["pixel_kd"]
    torch.testing.assert_close(gradient(None), expected, rtol=1e-4, atol=1e-6)


class Maps(nn.Module):
    """Logits of one convolution, and a named feature map of another width and stride."""

    def __init__(self, channels: int, stride: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.logits = nn.Conv2d(3, 3, 3, stride=4, padding=1)
        self.feature = nn.Conv2d(3, channels, 3, stride=stride, padding=1)

    def forward(self, image: Tensor) -> SegOutput:
        feature = self.feature(image)
        return SegOutput(self.logits(image), {"decoder": feature, "aspp": feature + 1})


@pytest.mark.parametrize("teacher_stride", [4, 8])
@pytest.mark.parametrize("names", [CLASS_NAMES, ("bar", "disc", "ground")])
@pytest.mark.parametrize("name", ["attention", "pairwise", "correlation"])
def test_a_term_compares_the_maps_it_names(
    name: str, names: tuple[str, ...], teacher_stride: int
) -> None:
    method = {"attention": "ad", "pairwise": "sp", "correlation": "ickd"}[name]
    recipe = load_recipe(method)
    student = aligned(Maps(5, 4, seed=1), CLASSES)
    teacher_model = aligned(Maps(7, teacher_stride, seed=2), Classes(names, CLASSES.palette))
    teacher = Teacher(teacher_model, CLASSES)  # some of its classes move, its features do not
    batch = make_batch()
    result = Distiller(student, recipe, teacher)(batch, 0.5)

    with torch.no_grad():
        ours, target = student(batch.image), teacher_model(batch.image)
    order = [names.index(name) for name in CLASS_NAMES]
    target = target._replace(logits=target.logits[:, order])
    place = {"attention": "decoder", "pairwise": "aspp"}.get(name)
    s, t = (o.logits if place is None else o.features[place] for o in (ours, target))
    if t.shape[2:] != s.shape[2:]:
        t = upsample(t, (s.shape[2], s.shape[3])).float()
    function = {
        "attention": attention_loss,
        "pairwise": pairwise_loss,
        "correlation": correlation_loss,
    }[name]
    expected = function(s, t, valid=batch.valid)
    assert expected.item() > 1e-5
    assert result[name].item() == pytest.approx(expected.item(), rel=1e-4)
    weight = recipe.terms[name].weight
    total = result["cross_entropy"] + weight * result[name]
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert set(result) == {"loss", "cross_entropy", name}


def test_a_term_moved_to_the_logits_reads_them() -> None:
    recipe = load_recipe("ad", {"attention": {"at": "logits", "resolution": "input"}})
    student, teacher = (aligned(Maps(5, 4, seed), CLASSES) for seed in (1, 2))
    batch = make_batch()
    result = Distiller(student, recipe, Teacher(teacher, CLASSES))(batch, 0.5)
    with torch.no_grad():
        s, t = (upsample(m(batch.image).logits, (32, 48)) for m in (student, teacher))
    expected = attention_loss(s, t, valid=batch.valid)
    assert result["attention"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_a_map_that_a_network_does_not_have_is_named(owner: str) -> None:
    networks: dict[str, nn.Module] = {"student": Maps(5, 4, 1), "teacher": Maps(7, 4, 2)}
    recipe = load_recipe("ad", {"attention": {"at": "decodr"}})
    networks[owner] = Net(form="output") if owner == "student" else Net(form="tensor")
    student, teacher = (aligned(networks[key], CLASSES) for key in ("student", "teacher"))
    with pytest.raises(UserError) as caught:
        Distiller(student, recipe, Teacher(teacher, CLASSES))
    message = str(caught.value)
    assert "\n" not in message
    assert "term 'attention': the student has no feature 'decodr'" in message
    assert ("(allowed: logits, x)" if owner == "student" else "did you mean 'decoder'") in message
    if owner == "teacher":
        recipe = load_recipe("ad")
        with pytest.raises(UserError, match=r"the teacher has no feature 'decoder'.*logits\)"):
            Distiller(student, recipe, Teacher(teacher, CLASSES))(make_batch(), 0.5)


def test_weighted_sum() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    total = weighted_sum({"a": a, "b": b}, {"a": 0.5, "b": 3.0, "c": 9.0})
    assert total.item() == 16.0
    total.backward()
    assert [x.grad.item() if x.grad is not None else None for x in (a, b)] == [0.5, 3.0]


def test_weighted_sum_refuses_a_term_without_a_weight() -> None:
    with pytest.raises(KeyError, match="b"):
        weighted_sum({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, {"a": 1.0})


def test_a_distilled_student_comes_closer_to_its_teacher() -> None:
    teacher_model = aligned(Net(seed=3), CLASSES)
    student = aligned(Net(seed=4), CLASSES)
    distiller = Distiller(student, load_recipe("kd"), Teacher(teacher_model, CLASSES))
    batch = make_batch()
    distiller.eval()
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.02)
    first = distiller(batch, 0.0)["pixel_kd"].item()
    weights = {"cross_entropy": {"weight": 0.0}}
    only_kd = Distiller(student, load_recipe("kd", weights), distiller.teacher).eval()
    for _ in range(40):
        optimizer.zero_grad()
        only_kd(batch, 0.0)["loss"].backward()
        optimizer.step()
    assert distiller(batch, 0.0)["pixel_kd"].item() < first / 3


def test_native_cross_entropy_needs_no_upsampling(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    real = F.interpolate

    def spy(maps: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        sizes.append(tuple(maps.shape))
        return real(maps, *arguments, **keywords)

    recipe = load_recipe("none", {"cross_entropy": {"resolution": "native"}})
    distiller = Distiller(aligned(Net(), CLASSES), recipe)
    monkeypatch.setattr(F, "interpolate", spy)
    distiller(make_batch(), 0.5)
    assert sizes == [(2, 1, 32, 48)]
