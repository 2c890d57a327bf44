"""aicsd push and hf: names, against a small hub in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import RunCli
from fake_hub import FakeHub
from PIL import Image
from tiny_models import CLASSES, noise, save_tiny_model

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from huggingface_hub import ModelCard, constants  # noqa: E402

from aicsd.errors import UserError  # noqa: E402
from aicsd.hub_push import model_card, without_paths  # noqa: E402
from aicsd.models import Segmenter, load_model  # noqa: E402
from aicsd.runs import RunFolder  # noqa: E402

SECRET = "/home/alice/secret"
CONFIG: dict[str, Any] = {
    "run": f"{SECRET}/runs/mine",
    "data": {
        "name": "folder",
        "root": f"{SECRET}/photos",
        "train_split": "train",
        "val_split": "val",
        "options": {"list": "C:\\Users\\alice\\list.txt"},
    },
    "epochs": 3,
    "seed": 5,
    "teacher": "../secret/teacher",
    "student": {"backbone": "mobilenetv2_035", "weights": f"{SECRET}/start.safetensors"},
    "method": "kd",
    "terms": {"pixel_kd": {"weight": 1.0, "schedule": "falling"}},
}
METRICS = {
    "miou": 0.5,
    "pixel_accuracy": 0.75,
    "class_accuracy": 0.625,
    "images": 4,
    "parameters": 1000,
    "per_class_iou": {"ground": 0.9, "disc": 0.6, "bar": None},
    "teacher": {"miou": 0.7, "pixel_accuracy": 0.8, "class_accuracy": 0.72},
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and a user who is logged in to it."""
    with FakeHub() as server:
        often = {"poll_interval": 0.01}  # else its end is awaited for half a second
        threading.Thread(target=server.serve_forever, kwargs=often, daemon=True).start()
        use_hub(server.url, tmp_path, monkeypatch)
        yield server
        server.shutdown()


def use_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN do when they are set before the start."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/{repo_id}")[1]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}{template}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    # else files go through a compiled client for the hub's own storage
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("hub") / "run"
    save_tiny_model(run / "model.safetensors")
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (run / "metrics.json").write_text(json.dumps(METRICS))
    return run


def assert_refused(result: tuple[int, str, str], words: str) -> None:
    code, output, error = result
    assert (code, output) == (2, "")
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    assert words in error, error


def test_push_and_use(
    fake: FakeHub,
    run_folder: Path,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, printed, error = run_cli("push", run_folder, "ada/small", "--private", "true")
    assert code == 0, error
    assert f"{fake.url}/ada/small/commit/" in printed
    assert fake.private["ada/small"]
    files = fake.repos["ada/small"]
    assert set(files) == {"model.safetensors", "config.yaml", "metrics.json", "README.md"}
    assert files["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert json.loads(files["metrics.json"]) == METRICS
    for content in files.values():
        assert b"alice" not in content
        assert b"secret" not in content
    Image.fromarray(noise(64, 48, 2)).save(tmp_path / "x.png")
    code, _, error = run_cli("predict", "hf:ada/small", tmp_path / "x.png", "--out", tmp_path / "o")
    assert code == 0, error
    wanted = load_model(run_folder).predict(noise(64, 48, 2))
    assert np.array_equal(np.array(Image.open(tmp_path / "o" / "x.png")), wanted)
    # the second time from the cache, without a network
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert np.array_equal(load_model("hf:ada/small").predict(noise(64, 48, 2)), wanted)


def test_a_network_without_a_run(
    fake: FakeHub, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """save_pretrained, from_pretrained and push_to_hub, by the names that other libraries use."""
    model, image = load_model(run_folder), noise(64, 48, 2)
    wanted = model.predict(image)
    assert len(np.unique(wanted)) > 1
    file = model.save_pretrained(tmp_path / "new" / "net")
    assert file == tmp_path / "new" / "net" / "model.safetensors"
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]
    again = Segmenter.from_pretrained(file.parent)
    assert again.classes == model.classes
    assert not again.training
    assert np.array_equal(again.predict(image), wanted)
    assert model.push_to_hub("ada/net", private=True) == f"{fake.url}/ada/net/commit/{'0' * 40}"
    assert fake.private["ada/net"]
    assert set(fake.repos["ada/net"]) == {"model.safetensors", "README.md"}
    card = ModelCard(fake.repos["ada/net"]["README.md"].decode())
    assert card.data.to_dict()["library_name"] == "aicsd"
    assert 'load_model("hf:ada/net")' in card.text
    assert "3 classes: ground, disc, bar" in card.text
    for name in ("ada/net", "ada/net@main", "hf:ada/net"):
        assert np.array_equal(Segmenter.from_pretrained(name).predict(image), wanted)
    # a folder here goes before a model of that name there
    monkeypatch.chdir(tmp_path)
    fake.repos["new/net"] = {}
    assert np.array_equal(Segmenter.from_pretrained("new/net").predict(image), wanted)
    with pytest.raises(UserError, match="no model hf:ada/none on the hub"):
        Segmenter.from_pretrained("ada/none")
    with pytest.raises(UserError, match="is a run folder"):
        model.save_pretrained(run_folder)
    with pytest.raises(UserError, match="is not a name"):
        model.push_to_hub("net")


def test_a_module_of_ones_own(fake: FakeHub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Conv2d(3, 3, 3, padding=1)
    model = Segmenter(module, CLASSES)
    model.save_pretrained(tmp_path / "own")
    model.push_to_hub("ada/own")
    wanted = model.predict(noise(32, 24))
    for reference in (tmp_path / "own", "ada/own"):
        empty = torch.nn.Conv2d(3, 3, 3, padding=1)
        again = Segmenter.from_pretrained(reference, net=empty)
        assert again.net is empty
        assert np.array_equal(again.predict(noise(32, 24)), wanted)
        with pytest.raises(UserError, match="net=module"):
            Segmenter.from_pretrained(reference)


@pytest.mark.parametrize(
    ("config", "metrics", "inputs", "words"),
    [
        ({}, {}, {}, "at the native resolution of the labels"),
        ({}, {"labels": "teacher"}, {}, "the metrics are the agreement with the teacher"),
        ({"protocol": "released"}, {}, {}, "resized to a short side of 64 pixels"),
        ({}, {}, {"resumed_from": {"epochs": "3"}}, "epochs (resumed from 3) on"),
    ],
)
def test_a_card_says_how_it_was_measured(
    tmp_path: Path,
    config: dict[str, Any],
    metrics: dict[str, Any],
    inputs: dict[str, Any],
    words: str,
) -> None:
    data = {**CONFIG["data"], "augment": {"crop": 64}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data, **config}))
    (tmp_path / "metrics.json").write_text(json.dumps({**METRICS, **metrics}))
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    card = model_card(RunFolder(tmp_path).read(), "ada/small")
    assert words in " ".join(card.split())
    assert ("model-index" in card) == ("labels" not in metrics)


def test_the_card(fake: FakeHub, run_folder: Path, run_cli: RunCli) -> None:
    assert run_cli("push", run_folder, "ada/small")[0] == 0
    assert not fake.private["ada/small"]
    text = fake.repos["ada/small"]["README.md"].decode()
    card = ModelCard(text)  # as the hub's own library reads it
    front = card.data.to_dict()
    assert front["library_name"] == "aicsd"
    assert front["pipeline_tag"] == "image-segmentation"
    assert {"knowledge-distillation", "kd"} <= set(front["tags"])
    assert "license" not in front
    results = {result.metric_type: result for result in card.data.get("eval_results")}
    assert {key: result.metric_value for key, result in results.items()} == {
        "mean_iou": 0.5,
        "accuracy": 0.75,
        "mean_accuracy": 0.625,
    }
    assert results["mean_iou"].dataset_name == "folder"
    for words in (
        "| mIoU % | 50.00 | 70.00 |",
        "| bar | - |",
        "from the teacher `teacher`",
        "**kd**",
        'load_model("hf:ada/small")',
        "| pixel_kd | 1.0 | falling |",
        "## Licence",
        f"{len(CLASSES.names)} classes",
    ):
        assert words in text, words
    # a card that its owner has worked on is not replaced
    fake.repos["ada/small"]["README.md"] = b"mine"
    fake.repos["ada/small"]["metrics.json"] = b"old"
    assert run_cli("push", run_folder, "ada/small")[0] == 0
    assert fake.repos["ada/small"]["README.md"] == b"mine"
    assert json.loads(fake.repos["ada/small"]["metrics.json"]) == METRICS


def test_a_config_loses_its_paths_and_nothing_else() -> None:
    public = {
        "teacher": "hf:ada/teacher",
        "student": {"backbone": "resnet18"},
        "epochs": 3,
        "scales": [0.5, "a"],
        "flag": None,
    }
    assert without_paths(public) == public
    assert without_paths({"teacher": "toy:ada/net"}) == {"teacher": "toy:ada/net"}
    assert without_paths({"teacher": "smp:/home/ada/net"}) == {"teacher": "net"}
    assert without_paths(CONFIG) == {
        **CONFIG,
        "run": "mine",
        "data": {**CONFIG["data"], "root": None, "options": {"list": "list.txt"}},
        "teacher": "teacher",
        "student": {"backbone": "mobilenetv2_035", "weights": "start.safetensors"},
    }


def test_a_model_of_the_hub_teaches(
    fake: FakeHub, tiny_folder: Path, run_folder: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    from tiny_runs import NO_REPORT, data_flags, distill_command

    assert run_cli("push", run_folder, "ada/small")[0] == 0
    run = tmp_path / "new"
    more = ("--epochs", "1", "--method", "kd", *NO_REPORT)
    command = distill_command(tiny_folder, "hf:ada/small", run, *more)
    code, _, error = run_cli(*command)
    assert code == 0, error
    assert "hf:ada/small" in (run / "config.yaml").read_text()
    assert run_cli("evaluate", "hf:ada/small", *data_flags(tiny_folder))[0] == 0


def test_only_safetensors_is_read(fake: FakeHub, run_cli: RunCli, tmp_path: Path) -> None:
    Image.fromarray(noise(64, 48)).save(tmp_path / "x.png")
    predict = ("predict", "hf:eve/evil", tmp_path / "x.png", "--out", tmp_path / "o")
    fake.repos["eve/evil"] = {"model.pth": b"\x80\x04pickle"}
    assert_refused(run_cli(*predict), "hf:eve/evil contains no aicsd model file")
    fake.repos["eve/evil"] = {"model.safetensors": b"\x80\x04pickle"}
    assert_refused(run_cli(*predict), "is not a readable safetensors file")


def test_a_network_of_another_library(fake: FakeHub, run_cli: RunCli, tmp_path: Path) -> None:
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
    )
    net = smp.Unet("mobilenet_v2", encoder_weights=None, decoder_channels=[8] * 5, classes=3)
    net.save_pretrained(str(tmp_path / "net"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    fake.repos["ada/unet"] = {**files, "classes.txt": b"sky\nroad\ncar\n"}
    fake.repos["ada/parts"] = {**fake.repos["ada/unet"]}
    content = fake.repos["ada/parts"].pop("model.safetensors")
    fake.repos["ada/parts"] |= {
        "model-00001-of-00001.safetensors": content,
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
        ).encode(),
    }
    image = noise(64, 48)
    wanted = load_model(tmp_path / "net").predict(image)
    for name in ("hf:ada/unet", "smp:ada/unet", "hf:ada/parts"):
        model = load_model(name)
        assert model.classes.names == ("sky", "road", "car")
        assert np.array_equal(model.predict(image), wanted)
    Image.fromarray(image).save(tmp_path / "x.png")
    predict = ("predict", "hf:eve/evil", tmp_path / "x.png", "--out", tmp_path / "o")
    fake.repos["eve/evil"] = {"config.json": files["config.json"], "pytorch_model.bin": b"."}
    assert_refused(run_cli(*predict), "hf:eve/evil contains no aicsd model file")
    predict = ("predict", "smp:ada/other", *predict[2:])
    fake.repos["ada/other"] = {"model.safetensors": content}
    assert_refused(run_cli(*predict), "hf:ada/other has no config.json")


def test_refused(
    fake: FakeHub,
    run_folder: Path,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.fromarray(noise(64, 48)).save(tmp_path / "x.png")

    def predict(name: str) -> tuple[int, str, str]:
        return run_cli("predict", name, tmp_path / "x.png", "--out", tmp_path / "o")

    assert_refused(run_cli("push", run_folder, "small"), "'small' is not a name")
    assert_refused(run_cli("push", run_folder, "a/b c"), "a/b c is not a name")
    assert_refused(run_cli("push", tmp_path, "ada/small"), "is not a run folder")
    assert_refused(predict("hf:ada/none"), "no model hf:ada/none on the hub")
    assert_refused(predict("hf:a/b/c"), "hf:a/b/c is not a name")
    fake.repos["ada/small"] = {}
    assert_refused(predict("hf:ada/small@v9"), "no such revision")
    fake.refuse = 403
    assert_refused(run_cli("push", run_folder, "ada/other"), "the hub refused ada/other")
    fake.refuse = None
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(run_cli("push", run_folder, "ada/other"), "hf auth login, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)  # nobody listens there
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's own attempts
    assert_refused(run_cli("push", run_folder, "ada/other"), "the hub cannot be reached")
    assert_refused(predict("hf:ada/other"), "the hub cannot be reached")
    assert fake.commits == 0


def test_the_variables_of_the_library_count(
    fake: FakeHub, run_folder: Path, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": fake.url,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
    }
    subprocess.run(
        [sys.executable, "-m", "aicsd", "push", str(run_folder), "ada/small"],
        env=environment,
        check=True,
        timeout=120,
    )
    assert "model.safetensors" in fake.repos["ada/small"]
