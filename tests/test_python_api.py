"""The Python API does what the commands do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import result_of
from conftest import CLASS_NAMES, TINY_MODEL
from PIL import Image
from tiny_runs import same_weights, train_lines
from torch import Tensor, nn

import aicsd as package
from aicsd.models import Segmenter, load_model


class _DictNet(nn.Module):
    """A foreign network, as torchvision's: a dict of logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits: Tensor = self.net(image).logits
        return {"out": logits}


def api_settings(root: Path) -> dict[str, Any]:
    data = {
        "name": "folder",
        "root": str(root),
        "batch_size": 4,
        "workers": 0,
        "augment": {"crop": 32},
    }
    return {"data": data, "accelerator": "cpu", "epochs": 1, "log_every": 1, "report_images": 0}


@pytest.mark.parametrize("kind", ["path", "segmenter", "net", "dict"])
def test_distill_in_python(
    distilled: Path, root: Path, teacher: Path, tmp_path: Path, kind: str
) -> None:
    given: Any = teacher
    if kind != "path":
        given = load_model(teacher)
    if kind in ("net", "dict"):
        given = given.net
    if kind == "dict":
        given = _DictNet(given)
    run = package.distill(
        given, student=TINY_MODEL, run=tmp_path / "run", seed=3, **api_settings(root)
    )
    assert same_weights(distilled, tmp_path / "run")
    assert run.path == tmp_path / "run"
    assert run.metrics == result_of(run.path)
    wanted, found = result_of(distilled), result_of(run.path)
    # a module that declares nothing is resized without aligned corners
    changed = {"seconds": 0, "teacher": {}} if kind in ("net", "dict") else {"seconds": 0}
    assert {**found, **changed} == {**wanted, **changed}
    assert not run.student.training
    image = root / "images" / "val" / "000.png"
    assert np.array_equal(run.student.predict(image), load_model(distilled).predict(image))


def test_train_in_python(baseline: Path, root: Path, tmp_path: Path) -> None:
    run = package.train(TINY_MODEL, run=tmp_path / "run", **api_settings(root))
    assert same_weights(baseline, run.path)
    assert run.metrics["miou"] == result_of(baseline)["miou"]


def test_distill_in_python_with_terms(root: Path, teacher: Path, tmp_path: Path) -> None:
    package.distill(
        teacher,
        TINY_MODEL,
        run=tmp_path / "run",
        terms={"icsd": {"weight": 7}},
        optimizer={"name": "adamw", "lr": 0.001},
        **api_settings(root),
    )
    lines_ = train_lines(tmp_path / "run")
    assert lines_[1]["weight/icsd"] == 3.5
    assert lines_[0]["lr"] == 0.001


def test_short_forms_of_the_python_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backbone for a model; digits or a folder for data."""
    seen: list[Any] = []
    monkeypatch.setattr("aicsd.api.run_training", lambda config, *_: seen.append(config))
    monkeypatch.setattr("aicsd.api.run_distillation", lambda config, *_: seen.append(config))
    package.train("resnet18", tmp_path)
    package.train()
    package.distill(tmp_path / "run", "mobilenetv2_100", str(tmp_path), method="kd", epochs=3)
    first, second, third = seen
    assert (first.model.backbone, first.data.named().name, first.data.root) == (
        "resnet18",
        "folder",
        str(tmp_path),
    )
    assert second.data.name == "digits"
    assert third.student.backbone == "mobilenetv2_100"
    assert (third.teacher, third.method, third.epochs) == (str(tmp_path / "run"), "kd", 3)
    assert third.data.root == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"optimizer": {"lrr": 3}}, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
        ({"optimizer": 3}, "optimizer is 3; it must hold keys"),
        ({"epochs": 0}, "epochs is 0"),
        ({"model": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"data": "nowhere"}, "no folder nowhere"),
    ],
    ids=["key", "nested", "section", "value", "backbone", "data"],
)
def test_errors_in_python(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    from aicsd.errors import UserError

    with pytest.raises(UserError, match=message):
        package.train(**{"run": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error")
def test_load_model_and_predict(student: Path, root: Path) -> None:
    image = root / "images" / "val" / "001.png"
    pixels = np.asarray(Image.open(image))
    model = package.load_model(student)
    assert isinstance(model, Segmenter)
    assert not model.training
    assert model.classes.names == CLASS_NAMES
    ids = model.predict(image)
    assert ids.shape == (48, 64)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, model.predict(pixels))
    assert np.array_equal(ids, package.load_model(student / "model.safetensors").predict(image))
