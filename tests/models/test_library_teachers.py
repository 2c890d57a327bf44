"""Networks of other libraries from the command line: as teachers and students, resumed, used."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, write_folder
from PIL import Image
from tiny_runs import FIT_FLAGS, aicsd, data_flags, same_weights
from tiny_transformers import SIDE, save_tokenizer, tiny_network, transformers

from aicsd.data import open_dataset
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.engine.reporting import RunLogger
from aicsd.evaluation import evaluate
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, build_model, load_model
from aicsd.models.transformers_net import KINDS
from aicsd.teacher import Teacher
from aicsd.types import Batch

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)
RunCli = Callable[..., tuple[int, str, str]]
TERMS: dict[str, Any] = {
    "cross_entropy": {"resolution": "input"},
    "pixel_kd": {"weight": 1},
    "widths": {"loss": "pairwise", "weight": 1, "at": {"student": "stage2", "teacher": "stage4"},
               "adapter": "conv1x1"},
}  # fmt: skip
SEGFORMER = json.dumps({"config": {
    "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}})  # fmt: skip
UNET = json.dumps({"encoder": "tu-mobilenetv3_small_050", "decoder_channels": [16, 16, 8, 8, 8]})
STUDENTS = {
    "mask2former": ("transformers:segformer", SEGFORMER),
    "unet": ("smp:unet", UNET),
}
"""Teacher -> family and options of its student."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("libraries")
    write_folder(place / "data", {"train": 4, "val": 2})
    (place / "recipe.yaml").write_text(json.dumps({"terms": TERMS}))
    tiny_network("mask2former", CLASS_NAMES).save_pretrained(place / "mask2former")
    transformers.Mask2FormerImageProcessor().save_pretrained(place / "mask2former")
    torch.manual_seed(0)
    unet = smp.Unet("resnet18", encoder_weights=None, decoder_channels=[8] * 5, classes=3)
    unet.save_pretrained(str(place / "unet"))
    (place / "unet" / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    for teacher in STUDENTS:
        aicsd(*distil(place, teacher, place / f"from_{teacher}"))
    return place


def distil(place: Path, teacher: str, run: Path) -> tuple[object, ...]:
    family, options = STUDENTS[teacher]
    flags = (*data_flags(place / "data"), *FIT_FLAGS, "--data.batch_size", "2", "--epochs", "2",
             "--data.augment.crop", "64")  # fmt: skip
    return (
        "distill", *flags, "--teacher", place / teacher, "--student.family", family,
        "--student.options", options, "--method", place / "recipe.yaml", "--run", run,
    )  # fmt: skip


@pytest.mark.parametrize("teacher", STUDENTS)
def test_a_run_holds_both(teacher: str, place: Path) -> None:
    run = place / f"from_{teacher}"
    result = json.loads((run / "metrics.json").read_text())
    data = open_dataset("folder", str(place / "data"), "val")
    for scores, reference in ((result, run), (result["teacher"], place / teacher)):
        assert scores["miou"] == pytest.approx(evaluate(load_model(reference), data).miou, abs=1e-6)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/pixel_kd"] > 0
    assert first["loss/widths"] > 0


@pytest.mark.parametrize("teacher", STUDENTS)
def test_a_stopped_distillation_goes_on_exactly(
    teacher: str, place: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLogger.scalars

    def stop(self: RunLogger, at: int, values: dict[str, Any]) -> None:
        write(self, at, values)
        if at == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "scalars", stop)
        code, _, error = run_cli(*distil(place, teacher, tmp_path / "run"))
    assert code == 130, error
    code, _, error = run_cli("distill", "--run", tmp_path / "run", "--resume")
    assert code == 0, error
    assert same_weights(tmp_path / "run", place / f"from_{teacher}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_teaches_and_learns(kind: str, tmp_path: Path) -> None:
    classes = Classes(CLASS_NAMES, ((0, 0, 0),) * 3)
    tiny_network(kind, CLASS_NAMES).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 3, (2, SIDE, SIDE), generator=generator)
    batch = Batch(images, mask, mask >= 0)
    small = ModelConfig(backbone="test_resnet", aspp_channels=8, decoder_channels=8)
    for student, teacher in (
        (build_model(small, classes), load_model(tmp_path)),
        (load_model(tmp_path), build_model(small, classes)),
    ):
        frozen = Teacher(teacher, classes)
        frozen.speed_up("eager", SIDE)
        distiller = Distiller(student.train(), load_recipe("none", TERMS), frozen)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
        before = {key: value.clone() for key, value in teacher.net.state_dict().items()}
        values = []
        for _ in range(2):
            losses = distiller(batch, 0.5)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            values.append(losses["loss"])
        assert all(bool(value.isfinite()) for value in values)
        assert values[0] != values[1]
        assert all(torch.equal(before[key], v) for key, v in teacher.net.state_dict().items())


def test_a_crop_that_a_network_does_not_take(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    command = (*distil(place, "mask2former", tmp_path / "run"), "--data.augment.crop", "32")
    code, _, error = run_cli(*command)
    assert (code, error.count("\n")) == (2, 1)
    assert "data.augment.crop is 32, and the networks cannot be run on such an image" in error
    assert not (tmp_path / "run").exists()


def test_predict_of_a_folder(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    image = place / "data" / "images" / "val" / "000.png"
    for name in ("unet", "mask2former"):
        code, _, error = run_cli("predict", place / name, image, "--out", tmp_path / name)
        assert code == 0, error
        wanted = load_model(place / name).predict(image)
        with Image.open(tmp_path / name / "000.png") as found:
            assert np.array_equal(np.asarray(found), wanted)
