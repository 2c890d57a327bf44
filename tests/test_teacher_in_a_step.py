"""A teacher that nothing can touch, in its own order of classes and normalisation."""

from __future__ import annotations

import pytest
import torch
from conftest import CLASS_NAMES
from distilled_networks import CLASSES, Net, aligned, make_batch, tiny

from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.errors import UserError
from aicsd.methods import list_methods, load_recipe
from aicsd.models import InputSpec
from aicsd.teacher import Teacher
from aicsd.types import SegOutput


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
    for key in ("net.classifier.weight", "net.backbone.body.conv1.0.weight"):
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
    assert student_net.seen is not None
    assert teacher_net.seen is not None
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
