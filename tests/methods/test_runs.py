"""The rival methods through the command line, on a few scenes of digits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_MODEL
from tiny_runs import NO_REPORT, aicsd, model_flags, train_lines
from torch import Tensor, nn

import aicsd as package
from aicsd.data.digits import CLASSES
from aicsd.errors import UserError
from aicsd.models import ModelConfig, build_model, save_model

RIVALS = {"ad": "attention", "sp": "pairwise", "ickd": "correlation"}
DATA = {"size": 64, "scenes": 8}
pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, random weights."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    settings = ModelConfig(**{**TINY_MODEL, "aspp_channels": 12, "decoder_channels": 16})
    save_model(build_model(settings, CLASSES), path)
    return path


def command(teacher: Path, run: Path, *more: str) -> list[str]:
    options = [f"--data.options.{key}={value}" for key, value in DATA.items()]
    return [
        "distill", *options, "--data.batch_size", "4", "--data.workers", "0",
        "--data.augment.crop", "64", "--accelerator", "cpu", "--log_every", "1", "--val_every", "0",
        "--optimizer.name", "adamw", "--optimizer.lr", "0.003", "--optimizer.head_lr_factor", "1",
        *model_flags("student"), "--teacher", str(teacher), "--run", str(run),
        *NO_REPORT, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("numerics", ["described", "released"])
@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_trains(teacher: Path, tmp_path: Path, method: str, numerics: str) -> None:
    term, run = RIVALS[method], tmp_path / "run"
    # on its own, so that it has to fall
    flags = ["--method", method, "--epochs", "6", "--terms.cross_entropy.weight", "0",
             f"--terms.{term}.numerics", numerics, f"--terms.{term}.weight", "30"]  # fmt: skip
    aicsd(*command(teacher, run, *flags))
    values = [line[f"loss/{term}"] for line in train_lines(run)]
    assert len(values) == 12
    assert all(math.isfinite(value) and value > 0 for value in values)
    if (method, numerics) != ("sp", "released"):  # its four nodes are too noisy for 12 steps
        assert sum(values[-4:]) < sum(values[:4])
    terms = yaml.safe_load((run / "config.yaml").read_text())["terms"]
    assert terms[term]["numerics"] == numerics
    assert terms[term]["weight"] == 30
    assert json.loads((run / "metrics.json").read_text())["images"] == 8


def test_a_complete_config_repeats_the_run(teacher: Path, tmp_path: Path) -> None:
    flags = ["--method", "sp", "--epochs", "1"]
    aicsd(*command(teacher, tmp_path / "a", *flags))
    aicsd("distill", "--config", tmp_path / "a" / "config.yaml", "--run", tmp_path / "b")
    first, second = (train_lines(tmp_path / name) for name in "ab")
    assert [line["loss"] for line in first] == [line["loss"] for line in second]


class Plain(nn.Module):
    """A teacher that returns logits and nothing else."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, stride=4, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.conv(image)
        return logits


@pytest.mark.parametrize(
    ("method", "classes", "message"),
    [
        ("ad", 11, "term 'attention': the teacher has no feature 'decoder'"),
        ("ickd", 7, "the teacher has 7 classes without names, and the data has 11"),
    ],
)
def test_a_teacher_that_cannot_be_compared_leaves_no_run(
    tmp_path: Path, method: str, classes: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        package.distill(
            Plain(classes),
            TINY_MODEL,
            method=method,
            run=tmp_path / "run",
            data={"name": "digits", "options": DATA, "workers": 0, "augment": {"crop": 64}},
        )
    assert not (tmp_path / "run").exists()


def test_logits_are_enough_for_terms_on_logits(tmp_path: Path) -> None:
    data = {
        "name": "digits",
        "options": DATA,
        "workers": 0,
        "batch_size": 4,
        "augment": {"crop": 64},
    }
    run = package.distill(
        Plain(11),
        TINY_MODEL,
        data,
        "ickd",
        tmp_path / "run",
        epochs=1,
        accelerator="cpu",
        report_images=0,
    )
    assert run.metrics["images"] == 8
