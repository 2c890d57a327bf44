"""Networks of other families from the command line: trained, distilled, resumed, used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, RunCli, write_folder
from PIL import Image
from tiny_runs import FIT_FLAGS, NO_REPORT, aicsd, data_flags, same_weights, stopping_at
from tiny_transformers import tiny_network, transformers

from aicsd.data import open_dataset
from aicsd.evaluation import evaluate
from aicsd.models import load_model

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)
TERMS: dict[str, Any] = {
    "cross_entropy": {"resolution": "input"},
    "pixel_kd": {"weight": 1},
    "widths": {
        "loss": "pairwise",
        "weight": 1,
        "at": {"student": "stage2", "teacher": "stage4"},
        "adapter": "conv1x1",
    },
}
SEGFORMER = json.dumps(
    {
        "config": {
            "hidden_sizes": [8, 16, 16, 24],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        }
    }
)
UNET = json.dumps({"encoder": "tu-test_resnet", "decoder_channels": [16, 16, 8, 8, 8]})
TORCHVISION = "torchvision:deeplabv3_mobilenet_v3_large"
LRASPP = "torchvision:lraspp_mobilenet_v3_large"
STUDENTS = {
    "mask2former": ("transformers:segformer", SEGFORMER),
    "unet": ("smp:unet", UNET),
    "torchvision": (LRASPP, "{}"),
}
"""Teacher -> family and options of its student."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, and a distillation from the folder of each teacher."""
    place = tmp_path_factory.mktemp("families")
    write_folder(place / "data", {"train": 4, "val": 2})
    (place / "recipe.yaml").write_text(json.dumps({"terms": TERMS}))
    tiny_network("mask2former", CLASS_NAMES).save_pretrained(place / "mask2former")
    transformers.Mask2FormerImageProcessor().save_pretrained(place / "mask2former")
    torch.manual_seed(0)
    unet = smp.Unet("resnet18", encoder_weights=None, decoder_channels=[8] * 5, classes=3)
    unet.save_pretrained(str(place / "unet"))
    (place / "unet" / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    train = ("train", *flags(place), "--epochs", "1", "--model.family", TORCHVISION)
    aicsd(*train, "--run", place / "torchvision")
    for teacher in STUDENTS:
        aicsd(*distil(place, teacher, place / f"from_{teacher}"))
    return place


def flags(place: Path) -> tuple[str, ...]:
    return (
        *data_flags(place / "data"),
        *FIT_FLAGS,
        "--data.batch_size",
        "2",
        "--data.augment.crop",
        "64",
        *NO_REPORT,
    )


def distil(place: Path, teacher: str, run: Path) -> tuple[object, ...]:
    family, options = STUDENTS[teacher]
    return (
        "distill", *flags(place), "--epochs", "2", "--teacher", place / teacher,
        "--student.family", family, "--student.options", options,
        "--method", place / "recipe.yaml", "--run", run,
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


def test_a_run_names_its_family(place: Path) -> None:
    for run, family in (("torchvision", TORCHVISION), ("from_torchvision", LRASPP)):
        model = load_model(place / run)
        assert model.origin is not None
        assert ":".join((model.origin.family, model.name)) == family
        assert not model.align_corners


@pytest.mark.parametrize("teacher", STUDENTS)
def test_a_stopped_distillation_goes_on_exactly(
    teacher: str, place: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    with stopping_at(3):
        code, _, error = run_cli(*distil(place, teacher, tmp_path / "run"))
    assert code == 130, error
    code, _, error = run_cli("distill", "--run", tmp_path / "run", "--resume")
    assert code == 0, error
    assert same_weights(tmp_path / "run", place / f"from_{teacher}")


@pytest.mark.parametrize("name", ["unet", "mask2former", "from_torchvision"])
def test_predict(name: str, place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    image = place / "data" / "images" / "val" / "000.png"
    code, _, error = run_cli("predict", place / name, image, "--out", tmp_path)
    assert code == 0, error
    with Image.open(tmp_path / "000.png") as found:
        assert np.array_equal(np.asarray(found), load_model(place / name).predict(image))


def test_evaluate_and_export(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    student = place / "from_torchvision"
    code, printed, error = run_cli("evaluate", student, *data_flags(place / "data"))
    assert code == 0, error
    miou = json.loads((student / "metrics.json").read_text())["miou"]
    assert f"{100 * miou:.2f}" in printed
    # of the formats the quickest to write; test_sources.py has other families as ONNX
    code, printed, error = run_cli("export", student, "--out", tmp_path / "student.pt2")
    assert code == 0, error
    compared = re.search(r"([\d.]+)% of the labels as in PyTorch", printed)
    assert compared is not None, printed
    assert float(compared[1]) >= 99.9
    assert (tmp_path / "student.pt2").is_file()


def test_a_crop_that_a_network_does_not_take(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    command = (*distil(place, "mask2former", tmp_path / "run"), "--data.augment.crop", "32")
    code, _, error = run_cli(*command)
    assert (code, error.count("\n")) == (2, 1)
    assert "data.augment.crop is 32, and the networks cannot be run on such an image" in error
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_trains_where_the_network_can(
    place: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    one = ("train", *flags(place), "--data.batch_size", "1", "--epochs", "1")
    code, _, error = run_cli(*one, "--model.family", TORCHVISION, "--run", tmp_path / "a")
    assert (code, "data.batch_size is 1; it must be 2 or more" in error) == (2, True)
    assert not (tmp_path / "a").exists()
    code, _, error = run_cli(
        *one, "--model.family", "lraspp", "--model.backbone", "mobilenetv3_small_050",
        "--model.options", "{channels: 8}", "--run", tmp_path / "b",
    )  # fmt: skip
    assert code == 0, error
    assert load_model(tmp_path / "b").maps["head"].channels == 8


def test_a_config_from_before_a_key_was_renamed(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "old.yaml").write_text("model: {backbone: test_resnet, published_layout: true}\n")
    command = ("train", "--config", tmp_path / "old.yaml", "--run", tmp_path / "run")
    code, printed, error = run_cli(*command, "--print_config")
    assert code == 0, error
    assert "released_layout: true" in printed
