"""Modules as students and teachers: of libraries, of one's own, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from tiny_runs import same_weights, stopping_at
from tiny_transformers import tiny_network
from torch import Tensor, nn

import aicsd
from aicsd.engine.stop import Interrupted
from aicsd.errors import UserError
from aicsd.models import load_model

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)
TERMS = {"at": {"loss": "attention", "at": {"student": "stage2", "teacher": "stage2"}, "weight": 1}}


class Own(nn.Module):
    """Four layers with logits for three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 3, 3, stride=2, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


def unet(classes: int) -> nn.Module:
    net: nn.Module = smp.Unet(
        "tu-test_resnet", encoder_weights=None, decoder_channels=(8,) * 5, classes=classes
    )
    return net


def module(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module
    if kind == "smp":
        net = unet(classes=3)
    elif kind == "transformers":
        net = tiny_network("segformer", CLASS_NAMES)
    else:
        net = Own()
    return net


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = write_folder(tmp_path_factory.mktemp("modules") / "data", {"train": 4, "val": 2})
    return {
        "name": "folder",
        "root": str(root),
        "workers": 0,
        "batch_size": 2,
        "augment": {"crop": 64},
    }


def settings(data: dict[str, Any], run: Path, terms: bool) -> dict[str, Any]:
    found = {
        "data": data,
        "run": run,
        "method": "kd",
        "epochs": 2,
        "logger": "none",
        "accelerator": "cpu",
        "log_every": 1,
        "report_images": 0,
    }
    return {**found, "terms": TERMS} if terms else found


@pytest.mark.parametrize("kind", ["smp", "transformers", "own"])
def test_a_module_learns_stops_and_goes_on(
    kind: str, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a module as teacher; features meet where the library is known."""
    teacher = "smp" if kind == "transformers" else "transformers"
    has_maps = kind != "own"
    student = module(kind)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    run = aicsd.distill(module(teacher), student, **settings(data, tmp_path / "a", has_maps))
    assert any(not torch.equal(before[key], v.cpu()) for key, v in student.state_dict().items())
    if has_maps:
        assert {"stage1", "stage2", "stage4"} <= run.student.maps.keys()
        again = load_model(tmp_path / "a")  # of a library, it can be built again
    else:
        with pytest.raises(UserError, match="give the module that they belong to"):
            load_model(tmp_path / "a")
        again = load_model(tmp_path / "a", net=module(kind))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(again.predict(image), run.student.predict(image))

    cut = settings(data, tmp_path / "b", has_maps)
    with stopping_at(3), pytest.raises(Interrupted):
        aicsd.distill(module(teacher), module(kind), **cut)
    aicsd.distill(module(teacher), module(kind), **cut, resume=True)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_a_module_that_is_not_given_again(
    data: dict[str, Any], tmp_path: Path, run_cli: RunCli
) -> None:
    aicsd.distill(Own(), TINY_MODEL, **settings(data, tmp_path / "teacher", False))
    aicsd.distill(None, Own(), **{**settings(data, tmp_path / "student", False), "method": "none"})
    for name, words in (
        ("teacher", "was given from Python as a module; give it again: aicsd.distill(module"),
        ("student", "the network of this config is a module of your own: give it from Python"),
    ):
        more = ("--resume", "--epochs", "3")
        code, _, error = run_cli("distill", "--run", tmp_path / name, *more)
        line = error.splitlines()[-1]  # those of the runs above come first
        assert (code, line.startswith("aicsd: error: ")) == (2, True), error
        assert words in line
    other = settings(data, tmp_path / "teacher", False)
    with pytest.raises(UserError, match="was started with another teacher"):
        aicsd.distill(module("smp"), TINY_MODEL, **{**other, "epochs": 3}, resume=True)


def test_modules_with_other_numbers_of_classes(data: dict[str, Any], tmp_path: Path) -> None:
    net = unet(classes=5)
    options = settings(data, tmp_path / "a", False)
    with pytest.raises(UserError, match="has 5 logits per pixel, and the data 3 classes"):
        aicsd.distill(Own(), net, **options)
    with pytest.raises(UserError, match="has 5 classes without names, and the data has 3"):
        aicsd.distill(net, Own(), **options)
    named = tiny_network("segformer", ("road", "sky", "car"))
    with pytest.raises(UserError, match="has no classes"):
        aicsd.distill(named, Own(), **options)
