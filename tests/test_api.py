"""The public functions, on references and on objects in memory; the commands call the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from conftest import RunCli
from PIL import Image

import aicsd
from aicsd import api
from aicsd.data import open_dataset
from aicsd.inputs import DataSplit, open_split
from aicsd.models import load_model
from aicsd.run_config import DistillConfig, TrainConfig


def measured(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return result


@pytest.mark.parametrize("kind", ["run", "file", "segmenter and name", "path", "keys", "dataset"])
def test_evaluate(runs: Path, kind: str) -> None:
    """The dataset is that of the run unless another is given."""
    run, root = runs / "alone", runs / "data"
    arguments: dict[str, tuple[Any, Any]] = {
        "run": (run, None),
        "file": (run / "best.safetensors", None),
        "segmenter and name": (load_model(run), {"name": "folder", "root": str(root)}),
        "path": (str(run), root),
        "keys": (run, {"root": str(root), "split": "val"}),
        "dataset": (load_model(run), open_dataset("folder", str(root), "val")),
    }
    model, data = arguments[kind]
    metrics = aicsd.evaluate(model, data=data, device="cpu")
    assert metrics.images == 4
    if kind != "file":
        assert metrics.miou == measured(run)["miou"]


def test_evaluate_another_split_of_the_run(runs: Path) -> None:
    assert aicsd.evaluate(runs / "alone", data={"split": "train"}).images == 8
    flipped = aicsd.evaluate(runs / "alone", flip=True, scales=(0.5, 1.0), boundary=True)
    assert flipped.boundary_iou is not None


def test_the_command_takes_the_data_from_the_run(
    runs: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    options = ["--json", tmp_path / "m.json", "--flip", "--calibration"]
    code, text, error = run_cli("evaluate", runs / "alone", *options)
    assert code == 0, error
    assert "(4 images)" in text
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["miou"] == aicsd.evaluate(runs / "alone", flip=True).miou
    assert found["miou"] != measured(runs / "alone")["miou"]
    assert f"confidence {100 * found['confidence']:.2f}  calibration error" in text
    assert f"calibration error {100 * found['calibration_error']:.2f}  (" in text


def test_a_model_without_a_run_needs_data(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((runs / "alone" / "best.safetensors").read_bytes())
    with pytest.raises(aicsd.UserError, match=r"no images to read: .* give --data.name"):
        aicsd.evaluate(tmp_path / "m.safetensors")
    with pytest.raises(aicsd.UserError, match="unknown key 'sprit'; did you mean 'split'"):
        open_split({"sprit": "val"}, "nowhere")
    with pytest.raises(aicsd.UserError, match="no folder nowhere, and no dataset"):
        open_split("nowhere", "nowhere")
    assert len(open_split(DataSplit("digits", options={"scenes": 3, "size": 48}), "nowhere")) == 3


def test_predict(runs: Path, tmp_path: Path) -> None:
    photos = runs / "data" / "images" / "val"
    (tmp_path / "broken.png").write_bytes(b"no image")
    model = load_model(runs / "alone")
    out = tmp_path / "out"
    done = aicsd.predict(model, [photos, tmp_path / "broken.png"], out=out, outputs=("ids",))
    assert [outcome.error is None for outcome in done] == [True] * 4 + [False]
    ids = np.asarray(Image.open(out / "001.png"))
    assert np.array_equal(ids, model.predict(photos / "001.png"))
    one = aicsd.predict(runs / "alone", photos / "001.png", out=tmp_path / "one")
    assert [outcome.images for outcome in one] == [1]


def test_report(runs: Path, tmp_path: Path) -> None:
    page = aicsd.report(runs / "distilled", out=tmp_path / "report.html", images=1)
    assert "student AICSD" in page.read_text(encoding="utf-8")


def test_export(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model = load_model(runs / "alone")
    done = aicsd.export(model, out=tmp_path / "model.pt2", output="labels", size="64x48")
    assert (done.format.name, done.size, done.parity.agreement) == ("torch", (48, 64), 1.0)
    assert done.path.is_file()
    file = tmp_path / "m.safetensors"
    file.write_bytes((runs / "alone" / "best.safetensors").read_bytes())
    with pytest.raises(aicsd.UserError, match="no images to calibrate INT8 on"):
        aicsd.export(file, out=tmp_path / "int8.onnx", int8=True)


def test_names() -> None:
    assert set(aicsd.list_datasets()) >= {"digits", "voc", "cityscapes", "camvid", "folder"}
    assert "resnet18" in aicsd.list_models("resnet1?")
    assert aicsd.list_models("torchvision:lraspp*") == ["torchvision:lraspp_mobilenet_v3_large"]
    assert "aicsd" in aicsd.list_methods()
    assert "icsd" in aicsd.list_losses()
    assert aicsd.load_recipe("kd").needs_teacher


@pytest.mark.parametrize("name", ["test_resnet", "lraspp:mobilenetv3_small_050"])
def test_create_model(name: str) -> None:
    model = aicsd.create_model(name, ["road", "sky"])
    assert model.classes.names == ("road", "sky")
    assert len(set(model.classes.palette)) == 2
    assert model.predict(np.zeros((48, 64, 3), np.uint8)).shape == (48, 64)
    assert aicsd.create_model(name, 3).classes.names == ("class_0", "class_1", "class_2")
    assert aicsd.create_model(name, model.classes).classes == model.classes


def test_create_model_refuses() -> None:
    with pytest.raises(aicsd.UserError, match=r"unknown backbone 'resnet19'.*resnet18"):
        aicsd.create_model("resnet19", 3)
    with pytest.raises(aicsd.UserError, match=r"unknown family 'torchvison'.*torchvision"):
        aicsd.create_model("torchvison:fcn_resnet50", 3)
    with pytest.raises(aicsd.UserError, match=r"unknown key 'output_strid'.*'output_stride'"):
        aicsd.create_model("resnet18", 3, output_strid=8)


def test_the_typed_options_are_those_of_the_config() -> None:
    """Completion and type checkers know every key, and no other."""
    named = {"run", "data", "model", "teacher", "student", "method"}
    for options, config in ((api.TrainOptions, TrainConfig), (api.DistillOptions, DistillConfig)):
        assert get_type_hints(options).keys() == get_type_hints(config).keys() - named
