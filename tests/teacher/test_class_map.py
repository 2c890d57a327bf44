"""Classes of a teacher as those of the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, RunCli
from tiny_runs import NO_REPORT, data_flags, distill_command
from torch import Tensor, nn

from aicsd.api import distill
from aicsd.data import DATASETS, open_dataset
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.evaluation import evaluate
from aicsd.models import (
    InputSpec,
    ModelConfig,
    Origin,
    Segmenter,
    build_model,
    load_model,
    save_model,
)
from aicsd.teacher import Teacher
from aicsd.teacher.cache import fingerprint
from aicsd.teacher.class_map import GroupedClasses, group_classes, read_class_map, shipped_maps

Mapping = dict[str | int, str | int | None]
THEIRS = ("floor", "ball", "wall", "stick", "sky")
MAP: Mapping = {"floor": "ground", "wall": "ground", "ball": "disc", "stick": "bar", "sky": None}


def classes(*names: str) -> Classes:
    return Classes(names, ((0, 0, 0),) * len(names))


class Fixed(nn.Module):
    """Returns the logits that it holds."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), -1, -1, -1)


def test_probabilities_of_merged_classes_are_summed() -> None:
    logits = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 4
    teacher = Teacher(Segmenter(Fixed(logits), classes(*THEIRS)), classes(*CLASS_NAMES), MAP)
    found = teacher(torch.zeros(1, 3, 4, 6, dtype=torch.uint8)).logits.double().softmax(1)
    exponentials = logits.double().exp()[0]
    for row in range(4):
        for column in range(6):
            floor, ball, wall, stick, _ = (float(v) for v in exponentials[:, row, column])
            total = floor + wall + ball + stick
            wanted = torch.tensor([floor + wall, ball, stick], dtype=torch.float64) / total
            assert torch.allclose(found[0, :, row, column], wanted, atol=1e-6)
    assert teacher.notes == ["classes of the teacher that the data does not have are left out: sky"]
    assert teacher.maps["logits"].channels == 3


@pytest.mark.parametrize(
    ("teacher", "data", "mapping", "members"),
    [
        (("a", "b", "c"), ("c", "a"), None, ((2,), (0,))),
        (("class_0", "class_1"), ("x", "y"), None, ((0,), (1,))),
        (("class_0", "class_1", "class_2"), ("x", "y"), {0: "y", 1: "x", 2: "y"}, ((1,), (0, 2))),
        (("class_0", "class_1", "class_2"), ("x", "y"), {"class_2": 0, 1: 1}, ((2,), (1,))),
        (("a", "b", "c"), ("a", "d"), {"b": "d", "c": "a"}, ((0, 2), (1,))),
        (("a", "b"), ("a", "b"), {"a": "b", "b": "a"}, ((1,), (0,))),
        (("7", "b"), ("x", "y"), {7: "x", "b": "y"}, ((0,), (1,))),
    ],
)
def test_which_classes_meet(
    teacher: tuple[str, ...],
    data: tuple[str, ...],
    mapping: dict[str | int, str | int | None] | None,
    members: tuple[tuple[int, ...], ...],
) -> None:
    assert group_classes(classes(*teacher), classes(*data), mapping).members == members


@pytest.mark.parametrize(
    ("teacher", "mapping", "words"),
    [
        (
            ("a", "disc"),
            None,
            "has no classes ['ground', 'bar']; its classes are ['a', 'disc']",
        ),
        (("class_0", "class_1"), None, "has 2 classes without names, and the data has 3"),
        (THEIRS, {"flor": "ground"}, "the teacher has no class 'flor'; did you mean 'floor'"),
        (THEIRS, {"floor": "grund"}, "the data has no class 'grund'; did you mean 'ground'"),
        (THEIRS, {5: "ground"}, "the teacher has no class 5; its 5 classes are counted from 0"),
        (THEIRS, {"floor": 3}, "the data has no class 3; its 3 classes are counted from 0"),
        (THEIRS, {**MAP, "ball": None}, "has no classes ['disc']"),
    ],
)
def test_maps_that_do_not_fit(
    teacher: tuple[str, ...], mapping: dict[str | int, str | int | None] | None, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        group_classes(classes(*teacher), classes(*CLASS_NAMES), mapping)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no file .*; give a YAML file with lines such as"),
        ("", "must hold lines such as"),
        ("- a", "must hold lines such as"),
        ("a: [b]", "is neither a name nor a number"),
        ("yes: b", "is neither a name nor a number"),
        ("a: {", "cannot be read as YAML"),
    ],
)
def test_files_that_hold_no_map(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_class_map(path)


@pytest.mark.parametrize("name", shipped_maps())
def test_maps_of_the_package_are_complete(name: str) -> None:
    theirs, ours = (DATASETS[part].classes for part in name.split("_"))
    assert theirs is not None
    assert ours is not None
    mapping = read_class_map(name)
    assert set(mapping) == set(theirs.names)
    assert group_classes(theirs, ours, mapping).ignored == ()


def test_the_map_is_part_of_what_a_teacher_is() -> None:
    net = Fixed(torch.zeros(1, 5, 2, 2))

    def digest(mapping: Mapping) -> str:
        segmenter = Segmenter(net, classes(*THEIRS))
        return fingerprint(Teacher(segmenter, classes(*CLASS_NAMES), mapping).model)

    other = {**MAP, "sky": "bar"}
    assert digest(MAP) == digest(dict(MAP))
    assert len({digest(MAP), digest(other), digest({**MAP, "wall": "bar"})}) == 3
    assert len(GroupedClasses(net, ((0, 1), (2,))).state_dict()) == 2


def test_every_difference_between_teachers_shows() -> None:
    def teacher(**changes: Any) -> Segmenter:
        torch.manual_seed(0)
        return build_model(ModelConfig(**{**TINY_MODEL, **changes}), classes(*CLASS_NAMES))

    first = teacher()
    others = [teacher(output_stride=8), first.with_input(InputSpec((0.5,) * 3))]
    others += [Segmenter(first.net, classes(*CLASS_NAMES[::-1]), origin=Origin("x", {"a": 1}))]
    changed = teacher()
    with torch.no_grad():
        next(changed.net.buffers()).add_(1e-6)
    digests = [fingerprint(model) for model in (first, changed, *others)]
    assert fingerprint(teacher()) == digests[0]
    assert len(set(digests)) == 5
    orders = [classes(*names) for names in (CLASS_NAMES, CLASS_NAMES[::-1])]
    swapped = Segmenter(first.net, orders[1], first.input)
    assert len({fingerprint(Teacher(swapped, order).model) for order in orders}) == 2


def test_caches_of_earlier_versions_are_of_the_same_teacher() -> None:
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.arange(9.0).reshape(3, 3, 1, 1))
        nn.init.zeros_(cast(Tensor, net.bias))
    origin = Origin("family", {"width": 3})
    model = Segmenter(net, classes(*CLASS_NAMES), InputSpec(multiple=4), origin=origin)
    # printed by a version whose InputSpec had no field `resizing`
    own = "9b4890ca3d88f1d7210129089e0ab2e813bff7f2ca36c4eb96877324987640ba"
    assert fingerprint(model) == fingerprint(model, "0" * 64) == own
    # without `least` and `bicubic`, without `bicubic`, and with `resizing`
    for known in (
        "cb662783e02d74cd9e83d983fb701253875124557126b41536ef7403cb770d4f",
        "3681375cc63c851b9704c3da2ab9d6604283744c6525e958f91ffc0bf0b97045",
        "41314f85e9c3d31142faafc07309252a7431804788ee0053e2e9279600110e23",
    ):
        assert fingerprint(model, known) == known
        assert fingerprint(model.with_input(InputSpec(multiple=8)), known) not in (known, own)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher of other classes, and a map."""
    from conftest import write_folder

    place = tmp_path_factory.mktemp("maps")
    write_folder(place / "data", {"train": 4, "val": 2})
    torch.manual_seed(0)
    save_model(build_model(ModelConfig(**TINY_MODEL), classes(*THEIRS)), place / "t.safetensors")
    (place / "map.yaml").write_text(json.dumps(MAP))
    return place


def test_a_teacher_of_other_classes(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    data, teacher = place / "data", place / "t.safetensors"
    more = ("--epochs", "1", "--method", "kd", *NO_REPORT)
    command = distill_command(data, teacher, tmp_path / "run", *more)
    code, _, error = run_cli(*command)
    assert (code, "map its classes with --teacher_classes" in error) == (2, True)
    code, _, error = run_cli(*command, "--teacher_classes", place / "map.yaml")
    assert code == 0, error
    assert "classes of the teacher that the data does not have are left out: sky" in error
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    val = open_dataset("folder", str(data), "val")
    mapped = Teacher(load_model(teacher), val.classes, MAP).model
    assert result["teacher"]["miou"] == pytest.approx(evaluate(mapped, val).miou, abs=1e-6)
    options = (*data_flags(data), "--json", tmp_path / "m.json")
    code, _, error = run_cli("evaluate", teacher, *options)
    assert (code, "--teacher_classes MAP.yaml" in error) == (2, True)
    code, _, error = run_cli("evaluate", teacher, *options, "--teacher_classes", place / "map.yaml")
    assert code == 0, error
    measured = json.loads((tmp_path / "m.json").read_text())
    assert measured["miou"] == pytest.approx(result["teacher"]["miou"], abs=1e-6)
    code, _, error = run_cli("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert code == 0, error
    assert "missing in pictures" not in (tmp_path / "page.html").read_text()


def test_a_cache_knows_the_map(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(json.dumps(MAP))

    def run(name: str, *more: object) -> tuple[int, str, str]:
        command = distill_command(
            place / "data", place / "t.safetensors", tmp_path / name, "--epochs", "1",
            "--method", "kd", "--teacher_classes", path, "--teacher_cache", tmp_path / "cache",
            *NO_REPORT, *more,
        )  # fmt: skip
        return run_cli(*command)

    assert run("first")[0] == 0
    shutil.copytree(tmp_path / "first", tmp_path / "again")
    moved = tmp_path / "moved.yaml"
    path.rename(moved)
    resume = ("distill", "--run", tmp_path / "first", "--resume", "--epochs", "2")
    code, _, error = run_cli(*resume, "--teacher_classes", moved)
    assert code == 0, error
    path.write_text(json.dumps({**MAP, "wall": "bar"}))
    code, _, error = run("other")
    assert (code, "is of another teacher" in error) == (2, True)
    code, _, error = run_cli("distill", "--run", tmp_path / "again", "--resume", "--epochs", "2")
    assert (code, "was started with another teacher" in error) == (2, True), error


def test_modules_meet_by_number(place: Path, tmp_path: Path) -> None:
    five = nn.Conv2d(3, 5, 1)
    options: dict[str, Any] = {"epochs": 1, "method": "kd", "logger": "none"}
    data = {
        "name": "folder",
        "root": str(place / "data"),
        "workers": 0,
        "batch_size": 4,
        "augment": {"crop": 32},
    }
    with pytest.raises(UserError, match="has 5 classes without names, and the data has 3"):
        distill(five, TINY_MODEL, data, run=tmp_path / "a", **options)
    path = tmp_path / "map.yaml"
    path.write_text("0: ground\n1: disc\n2: ground\n3: bar\n4: null\n")
    run = distill(five, TINY_MODEL, data, run=tmp_path / "b", teacher_classes=str(path), **options)
    val = open_dataset("folder", str(place / "data"), "val")
    mapping: Mapping = {0: "ground", 1: "disc", 2: "ground", 3: "bar", 4: None}
    named = Segmenter(five, classes(*(f"class_{number}" for number in range(5))))
    wanted = evaluate(Teacher(named, val.classes, mapping).model, val).miou
    assert run.metrics["teacher"]["miou"] == pytest.approx(wanted, abs=1e-6)
