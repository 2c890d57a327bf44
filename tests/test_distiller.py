"""The training step: the sum of the terms by hand, and a teacher that nothing can touch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES, TINY_MODEL
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller, weighted_sum
from aicsd.errors import UserError
from aicsd.losses import attention_loss, correlation_loss, pairwise_loss
from aicsd.methods import list_methods, load_recipe
from aicsd.models import InputSpec, ModelConfig, Segmenter, build_model
from aicsd.models.segmenter import IMAGENET
from aicsd.teacher import Teacher
from aicsd.types import IGNORE_INDEX, Batch, SegOutput

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


class Net(nn.Module):
    """Strided convolution, batch norm and dropout: everything that a careless step disturbs."""

    def __init__(self, stride: int = 4, classes: int = 3, seed: int = 0, form: str = "out") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(6, classes, 1)
        nn.init.normal_(self.classifier.weight, std=2.0)
        self.form = form
        self.seen: Tensor

    def forward(self, image: Tensor) -> object:
        self.seen = image.detach()
        logits = self.classifier(self.dropout(self.norm(self.conv(image)).relu()))
        return {
            "output": SegOutput(logits, {"x": image}),
            "tensor": logits,
            "out": {"out": logits, "aux": logits * 0},
            "object": SimpleNamespace(logits=logits),
            "list": [logits],
        }[self.form]


def make_batch(size: tuple[int, int] = (32, 48), count: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (count, 3, *size), generator=generator).to(torch.uint8)
    mask = torch.randint(3, (count, *size), generator=generator)
    valid = torch.ones(count, *size, dtype=torch.bool)
    valid[0, 20:] = False
    valid[1, :, 30:] = False
    mask[~valid] = IGNORE_INDEX
    mask[:, 3:6] = IGNORE_INDEX
    return Batch(image, mask, valid)


def tiny(seed: int = 0, **changes: object) -> Segmenter:
    torch.manual_seed(seed)
    return build_model(ModelConfig(**{**TINY_MODEL, **changes}), CLASSES)


def aligned(net: nn.Module, classes: Classes, spec: InputSpec = IMAGENET) -> Segmenter:
    return Segmenter(net, classes, spec, align_corners=True)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, as one matrix for each axis."""

    def axis(short: int, long: int) -> Tensor:
        matrix = np.zeros((long, short))
        for row in range(long):
            position = row * (short - 1) / (long - 1)
            left = min(int(position), short - 2)
            matrix[row, left] = 1 - (position - left)
            matrix[row, left + 1] = position - left
        return torch.from_numpy(matrix)

    rows, columns = axis(maps.shape[2], size[0]), axis(maps.shape[3], size[1])
    return torch.einsum("Yy,bcyx,Xx->bcYX", rows, maps.double(), columns)


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


@pytest.mark.parametrize("method", list_methods())
def test_a_step_leaves_the_teacher_as_it_was(method: str) -> None:
    teacher_model, student = tiny(1), tiny(2)
    before = {key: value.clone() for key, value in teacher_model.state_dict().items()}
    assert any("num_batches_tracked" in key for key in before)
    teacher_model.train()
    teacher = Teacher(teacher_model, CLASSES)
    distiller = Distiller(student, load_recipe(method), teacher).train()
    start = {key: value.clone() for key, value in student.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, weight_decay=0.1)
    batch = make_batch((64, 64))
    for step in range(2):
        optimizer.zero_grad()
        distiller(batch, 0.5 + step / 4)["loss"].backward()
        optimizer.step()

    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    after = student.state_dict()
    for key in ("net.classifier.weight", "net.backbone.body.conv_stem.weight"):
        assert not torch.equal(after[key], start[key])
    assert int(after["net.aspp.project.1.num_batches_tracked"]) == 2


def test_every_trainable_parameter_of_the_student_gets_a_gradient() -> None:
    teacher = Teacher(tiny(1), CLASSES)
    distiller = Distiller(tiny(2), load_recipe("aicsd"), teacher).train()
    distiller(make_batch((64, 64)), 0.5)["loss"].backward()
    missing = [name for name, p in distiller.named_parameters() if p.grad is None]
    assert not missing


def test_the_teacher_stays_in_evaluation_mode() -> None:
    net = Net()
    net.train()
    teacher = Teacher(aligned(net, CLASSES), CLASSES)
    distiller = Distiller(aligned(Net(seed=1), CLASSES), load_recipe("kd"), teacher)
    image = make_batch().image
    for call in (distiller.train, teacher.train, distiller.eval, lambda: teacher.train(True)):
        call()
        assert not any(module.training for module in teacher.modules())
        assert torch.equal(teacher(image).logits, teacher(image).logits)
    distiller.train()
    assert distiller.student.training
    assert not torch.equal(distiller.student(image).logits, distiller.student(image).logits)


def test_the_output_of_the_teacher_has_no_graph() -> None:
    teacher = Teacher(tiny(1), CLASSES)
    image = make_batch((64, 64)).image
    output = teacher(image)
    assert set(output.features) >= {"aspp", "decoder"}
    for value in (output.logits, *output.features.values()):
        assert not value.requires_grad
        assert value.grad_fn is None


def test_the_teacher_runs_without_autograd_even_if_its_weights_are_thawed() -> None:
    teacher = Teacher(aligned(Net(), CLASSES), CLASSES)
    teacher.requires_grad_(True)
    assert not teacher(make_batch().image).logits.requires_grad


def test_the_teacher_is_no_part_of_the_distiller() -> None:
    teacher, student = Teacher(tiny(1), CLASSES), tiny(2)
    distiller = Distiller(student, load_recipe("aicsd"), teacher)
    assert distiller.teacher is teacher
    assert set(distiller.state_dict()) == {f"student.{key}" for key in student.state_dict()}
    assert {id(p) for p in distiller.parameters()} == {id(p) for p in student.parameters()}
    assert teacher not in list(distiller.modules())


def test_a_method_without_teacher_terms_never_runs_it() -> None:
    net = Net(seed=2)
    teacher = Teacher(aligned(net, CLASSES), CLASSES)
    distiller = Distiller(aligned(Net(seed=1), CLASSES), load_recipe("none"), teacher)
    result = distiller(make_batch(), 0.5)
    assert distiller.teacher is None
    assert net.seen is None
    assert set(result) == {"loss", "cross_entropy"}
    assert torch.equal(result["loss"].detach(), result["cross_entropy"])


@pytest.mark.parametrize("method", sorted(set(list_methods()) - {"none"}))
def test_a_method_with_a_teacher_refuses_to_go_without(method: str) -> None:
    if not load_recipe(method).needs_teacher:
        Distiller(aligned(Net(), CLASSES), load_recipe(method))
        return
    with pytest.raises(UserError, match=f"'{method}' needs a teacher"):
        Distiller(aligned(Net(), CLASSES), load_recipe(method))


@pytest.mark.parametrize(
    "names",
    [
        ("bar", "ground", "disc"),
        ("sky", "disc", "ground", "tree", "bar"),
        ("ground", "disc", "bar", "tree"),
    ],
)
@pytest.mark.parametrize("form", ["output", "tensor", "out"])
def test_classes_of_the_teacher_come_in_the_order_of_the_student(
    names: tuple[str, ...], form: str
) -> None:
    net = Net(classes=len(names), form=form)
    model = aligned(
        net, Classes(names, ((0, 0, 0),) * len(names)), InputSpec((0.1, 0.2, 0.3), (1.0,) * 3)
    )
    image = make_batch().image
    with torch.no_grad():
        every = net.eval()((image / 255 - model.mean) / model.std)
    every = every.logits if form == "output" else every["out"] if form == "out" else every
    teacher = Teacher(model, CLASSES)
    expected = torch.stack([every[:, names.index(name)] for name in CLASS_NAMES], dim=1)
    assert torch.equal(teacher(image).logits, expected)
    assert teacher.model.classes == CLASSES
    Distiller(aligned(Net(), CLASSES), load_recipe("aicsd"), teacher)(make_batch(), 0.5)


def test_a_class_that_the_teacher_does_not_know_is_named() -> None:
    model = aligned(Net(), Classes(("ground", "tree", "bar"), ((0, 0, 0),) * 3))
    with pytest.raises(UserError) as caught:
        Teacher(model, CLASSES)
    assert "['disc']" in str(caught.value)
    assert "'tree'" in str(caught.value)


@pytest.mark.parametrize("names", [CLASS_NAMES, ("bar", "disc", "ground")])
def test_each_network_gets_its_own_normalisation(names: tuple[str, ...]) -> None:
    student_net, teacher_net = Net(seed=1), Net(seed=2)
    student = aligned(student_net, CLASSES, InputSpec((0.5,) * 3, (0.5,) * 3))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 2.0)
    teacher = Teacher(
        aligned(teacher_net, Classes(names, CLASSES.palette), InputSpec(mean, std)), CLASSES
    )
    batch = make_batch()
    Distiller(student, load_recipe("kd"), teacher)(batch, 0.5)
    for channel in range(3):
        unit = batch.image[:, channel].float() / 255
        torch.testing.assert_close(student_net.seen[:, channel], unit * 2 - 1)
        expected = (unit - mean[channel]) / std[channel]
        torch.testing.assert_close(teacher_net.seen[:, channel], expected)


@pytest.mark.parametrize("form", ["output", "tensor", "out", "object"])
def test_any_common_output_of_a_network_is_understood(form: str) -> None:
    image = make_batch().image
    expected = aligned(Net(form="output"), CLASSES).eval()(image).logits
    output = aligned(Net(form=form), CLASSES).eval()(image)
    assert isinstance(output, SegOutput)
    assert torch.equal(output.logits, expected)
    assert set(output.features) == ({"x"} if form == "output" else set())


def test_any_other_output_is_refused() -> None:
    with pytest.raises(UserError, match="list"):
        aligned(Net(form="list"), CLASSES)(make_batch().image)


def test_a_teacher_with_other_channels_than_classes_is_refused() -> None:
    teacher = Teacher(aligned(Net(classes=5), CLASSES), CLASSES)
    with pytest.raises(UserError, match="student has 3 logits per pixel and the teacher 5"):
        Distiller(aligned(Net(), CLASSES), load_recipe("kd"), teacher)


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
        "attention": attention_loss, "pairwise": pairwise_loss, "correlation": correlation_loss,
    }[name]  # fmt: skip
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
