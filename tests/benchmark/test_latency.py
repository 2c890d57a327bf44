"""Latency of models, side by side."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES, TINY_MODEL, RunCli
from safetensors.torch import load_file
from tiny_exports import SIZE, require_libraries
from tiny_network import tiny_model
from torch import Tensor, nn

from aicsd.benchmark.latency import measure_latency
from aicsd.data import Classes
from aicsd.errors import UserError
from aicsd.evaluation.cost import gmacs, measure_costs, take_turns
from aicsd.exporting import export_model
from aicsd.formats import onnx
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, save_model
from aicsd.visualization.entries import each_alone
from aicsd.visualization.report import NO_VALUE, _table
from aicsd.visualization.runs import Network

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


class Sleeper(nn.Module):
    """Takes the time that it is told to, and keeps the sizes of what it saw."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.seconds = seconds
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        if not image.is_meta:
            self.seen.append(tuple(image.shape))
            time.sleep(self.seconds[min(len(self.seen) - 1, len(self.seconds) - 1)])
        logits: Tensor = self.conv(image)
        return logits


def test_minimum_and_median_without_the_warm_up() -> None:
    # the first pass warms up; then 0.01, 0.05 and 0.09 s
    net = Sleeper([0.5, 0.01, 0.05, 0.09])
    models = {"slow": Segmenter(net, CLASSES).eval(), "fast": Segmenter(Sleeper([0]), CLASSES)}
    found = measure_latency(models, size=(64, 32), batch=2, repeats=3)
    assert net.seen == [(2, 3, 32, 64)] * 4
    slow = found["slow"]
    assert 0.01 <= slow.minimum <= slow.median
    assert slow.median >= 0.05
    assert slow.images_per_second == pytest.approx(2 / slow.median)
    assert slow.parameters == 12
    assert slow.gmacs == pytest.approx(32 * 64 * 9 / 1e9)


class Looks(nn.Module):
    """Hands a parameter to a module, looks at a value and attends."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.query = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = image + self.query(self.start)
        tokens = maps.flatten(2).transpose(1, 2)[:, None]
        for _ in range(2 if float(image.mean()) < 1e9 else 1):
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        logits: Tensor = tokens[:, 0].transpose(1, 2).reshape(maps.shape)
        return logits


def test_gmacs_of_a_network_that_looks_at_its_values() -> None:
    pixels = 20 * 48
    expected = 3 * 3 + 2 * (2 * pixels * pixels * 3)
    model = Segmenter(Looks(), CLASSES)
    assert gmacs(model, 48, 20) == pytest.approx(expected / 1e9, rel=1e-12)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    found = take_turns({name: partial(calls.append, name) for name in "ab"}, 2)
    assert calls == list("ababab")
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_the_command(tmp_path: Path, run_cli: RunCli) -> None:
    small = build_model(ModelConfig(**TINY_MODEL), CLASSES)
    save_model(small, tmp_path / "small.safetensors")
    large = build_model(ModelConfig(**{**TINY_MODEL, "decoder_channels": 64}), CLASSES)
    (tmp_path / "run").mkdir()
    save_model(large, tmp_path / "run" / "model.safetensors")
    names = [str(tmp_path / "small.safetensors"), str(tmp_path / "run")]
    file = tmp_path / "latency.json"
    code, text, error = run_cli(
        "benchmark", "latency", *names, "--size", "64x48", "--batch", 2, "--threads", 1,
        "--repeats", 2, "--device", "cpu", "--json", file,
    )  # fmt: skip
    assert code == 0, error
    result = json.loads(file.read_text())
    assert list(result["models"]) == names
    assert result["size"] == [64, 48]
    assert result["machine"]["threads"] == "1"
    for name, model in zip(names, (small, large), strict=True):
        found = result["models"][name]
        assert found["parameters"] == model.num_parameters()
        assert found["gmacs"] == pytest.approx(gmacs(model, 64, 48))
        assert 0 < found["minimum"] <= found["median"]
        assert f"\n{name}" in text
    assert "64x48, batches of 2, 2 interleaved repeats" in text
    assert f"torch {torch.__version__}" in text


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of ``tiny_model()`` for one image of ``SIZE``."""
    require_libraries(onnx.FORMAT)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(tiny_model(), path, size=SIZE)
    return path


def test_exported_models_beside_a_network(onnx_file: Path, tmp_path: Path, run_cli: RunCli) -> None:
    save_model(build_model(ModelConfig(**TINY_MODEL), CLASSES), tmp_path / "model.safetensors")
    file = tmp_path / "latency.json"
    code, text, error = run_cli(
        "benchmark", "latency", onnx_file, tmp_path / "model.safetensors", "--size", "128x96",
        "--repeats", 1, "--device", "cpu", "--json", file, "--threads", 1,
    )  # fmt: skip
    assert code == 0, error
    found = json.loads(file.read_text())["models"]
    mine, theirs = found[str(onnx_file)], found[str(tmp_path / "model.safetensors")]
    assert mine["gives"] == "logits"
    assert theirs["gives"] == "native"
    assert mine["gmacs"] is None
    assert mine["parameters"] == tiny_model().num_parameters() > 0
    assert mine["megabytes"] == onnx_file.stat().st_size / 1e6
    weights = load_file(tmp_path / "model.safetensors").values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    assert theirs["megabytes"] == pytest.approx(held / 1e6)
    assert mine["images_per_second"] == pytest.approx(1 / mine["median"])
    assert "1 interleaved repeats, 1 thread; MB" in text


def test_a_file_of_one_size_is_timed_at_that_size(onnx_file: Path) -> None:
    model = load_model(onnx_file)
    height, width = SIZE
    found = measure_latency({"file": model}, size=(width, height), repeats=1)["file"]
    assert found.minimum > 0
    with pytest.raises(UserError, match=f"file takes images of {width}x{height} only"):
        measure_latency({"file": model}, size=(64, 64))


def test_an_exported_model_in_a_report_has_parameters(onnx_file: Path) -> None:
    cost = measure_costs({"file": load_model(onnx_file)}, *SIZE)["file"]
    assert cost.parameters == tiny_model().num_parameters()
    assert cost.gmacs is None
    settings = each_alone([Network("file", None, {"miou": 0.5}, None)])
    for parameters, shown in ((1_234_567, "1.23 M"), (0, NO_VALUE)):
        (row,) = _table(settings, {"file": replace(cost, parameters=parameters)})
        assert (row["parameters"], row["GMACs"]) == (shown, NO_VALUE)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere"], "no model at nowhere"),
        (["nowhere", "--size", "512"], "size is '512'"),
        (["nowhere", "--threads", "0"], "threads is 0"),
        (["model.safetensors", "--batch", "0"], "batch is 0"),
        (["model.safetensors", "--repeats", "0"], "repeats is 0"),
        (["model.safetensors", "--device", "gpu"], "device 'gpu' cannot be used"),
        ([], "missing: models"),
    ],
)
def test_mistakes_of_latency(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(build_model(ModelConfig(**TINY_MODEL), CLASSES), tmp_path / "model.safetensors")
    code, _, error = run_cli("benchmark", "latency", *flags)
    assert code == 2
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    assert words in error
