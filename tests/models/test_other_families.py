"""Networks of another family from the command line: trained, distilled, resumed, used."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_folder
from PIL import Image
from tiny_runs import FIT_FLAGS, aicsd, data_flags, same_weights

from aicsd.data import open_dataset
from aicsd.engine.reporting import RunLogger
from aicsd.evaluation import evaluate
from aicsd.models import load_model

RunCli = Callable[..., tuple[int, str, str]]
TEACHER = "torchvision:deeplabv3_mobilenet_v3_large"
STUDENT = "torchvision:lraspp_mobilenet_v3_large"
RECIPE = """
terms:
  cross_entropy: {resolution: input}
  pixel_kd: {weight: 1}
  widths: {loss: pairwise, weight: 1, at: {student: stage2, teacher: stage4}, adapter: conv1x1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    write_folder(place / "data", {"train": 4, "val": 2})
    (place / "recipe.yaml").write_text(RECIPE)
    flags = (*data_flags(place / "data"), *FIT_FLAGS, "--data.batch_size", "2", "--epochs", "1")
    aicsd("train", *flags, "--model.family", TEACHER, "--run", place / "teacher")
    aicsd(*distil(place, place / "student"))
    return place


def distil(place: Path, run: Path) -> tuple[object, ...]:
    flags = (*data_flags(place / "data"), *FIT_FLAGS, "--data.batch_size", "2", "--epochs", "2")
    return (
        "distill", *flags, "--teacher", place / "teacher", "--student.family", STUDENT,
        "--method", place / "recipe.yaml", "--run", run,
    )  # fmt: skip


def test_a_run_holds_the_family(place: Path) -> None:
    for run, family in (("teacher", TEACHER), ("student", STUDENT)):
        model = load_model(place / run)
        assert model.origin is not None
        assert ":".join((model.origin.family, model.name)) == family
        assert not model.align_corners
    result = json.loads((place / "student" / "metrics.json").read_text())
    data = open_dataset("folder", str(place / "data"), "val")
    measured = evaluate(load_model(place / "student"), data)
    assert result["miou"] == pytest.approx(measured.miou, abs=1e-6)
    teacher = evaluate(load_model(place / "teacher"), data)
    assert result["teacher"]["miou"] == pytest.approx(teacher.miou, abs=1e-6)


def test_a_stopped_distillation_goes_on_exactly(
    place: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLogger.scalars

    def stop(self: RunLogger, at: int, values: dict[str, Any]) -> None:
        write(self, at, values)
        if at == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "scalars", stop)
        code, _, error = run_cli(*distil(place, tmp_path / "run"))
    assert code == 130, error
    code, _, error = run_cli("distill", "--run", tmp_path / "run", "--resume")
    assert code == 0, error
    assert same_weights(tmp_path / "run", place / "student")


def test_evaluate_predict_export_and_load(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    student, image = place / "student", place / "data" / "images" / "val" / "000.png"
    code, printed, error = run_cli("evaluate", student, *data_flags(place / "data"))
    assert code == 0, error
    miou = json.loads((student / "metrics.json").read_text())["miou"]
    assert f"{100 * miou:.2f}" in printed
    code, _, error = run_cli("predict", student, image, "--out", tmp_path / "masks")
    assert code == 0, error
    code, _, error = run_cli("export", student, "--out", tmp_path / "student.onnx")
    assert code == 0, error
    wanted = load_model(student).predict(image)
    with Image.open(tmp_path / "masks" / "000.png") as found:
        assert np.array_equal(np.asarray(found), wanted)
    assert (load_model(tmp_path / "student.onnx").predict(image) == wanted).mean() >= 0.999


def test_a_batch_of_one_trains_where_the_network_can(
    place: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    flags = (*data_flags(place / "data"), *FIT_FLAGS, "--data.batch_size", "1", "--epochs", "1")
    code, _, error = run_cli("train", *flags, "--model.family", TEACHER, "--run", tmp_path / "a")
    assert (code, "data.batch_size is 1; it must be 2 or more" in error) == (2, True)
    assert not (tmp_path / "a").exists()
    code, _, error = run_cli(
        "train", *flags, "--model.family", "lraspp", "--model.backbone", "mobilenetv3_small_050",
        "--model.options", "{channels: 8}", "--data.augment.crop", "64", "--run", tmp_path / "b",
    )  # fmt: skip
    assert code == 0, error
    assert load_model(tmp_path / "b").maps["head"].channels == 8


def test_a_config_from_before_a_key_was_renamed(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "old.yaml").write_text("model: {backbone: test_resnet, published_layout: true}\n")
    command = ("train", "--config", tmp_path / "old.yaml", "--run", tmp_path / "run")
    code, printed, error = run_cli(*command, "--print_config")
    assert code == 0, error
    assert "released_layout: true" in printed
