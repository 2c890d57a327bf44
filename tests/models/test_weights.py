"""Files of whole networks: the same after loading, refused when they are something else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASS_NAMES, RunCli
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_segmenters import CLASSES, MOBILENET, build, header_of, logits, random_image, timm_weights
from torch import nn

from aicsd import tensor_files
from aicsd.errors import UserError
from aicsd.models import InputSpec, ModelConfig, Segmenter, build_model, load_model, save_model
from aicsd.models.sources import deeplabv3plus
from aicsd.runs import MODEL_FILE


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_saved_model_predicts_the_same(tmp_path: Path, as_folder: bool) -> None:
    model = build(output_stride=8, dropout=0.25).train()
    path = tmp_path / "run" / (MODEL_FILE if as_folder else "any.safetensors")
    save_model(model, path, {"note": "x"})
    loaded = load_model(path.parent if as_folder else str(path))
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.classes == CLASSES
    assert loaded.origin == model.origin
    assert loaded.input == model.input
    assert loaded.maps == model.maps
    net: Any = loaded.net
    assert net.backbone.high.stride == 8
    assert net.aspp_dropout.p == 0.25
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, run_cli: RunCli, value: float
) -> None:
    """A training that diverged leaves a network that predicts one class, without a word."""
    model = build()
    with torch.no_grad():
        model.net.get_parameter("classifier.bias")[1] = value
    save_model(model, tmp_path / "m.safetensors")
    Image.fromarray(random_image()).save(tmp_path / "i.png")
    for command in (
        ("evaluate", tmp_path / "m.safetensors"),
        ("predict", tmp_path / "m.safetensors", tmp_path / "i.png", "--out", tmp_path / "out"),
        ("export", tmp_path / "m.safetensors", "--out", tmp_path / "m.onnx"),
    ):
        code, output, error = run_cli(*command)
        assert (code, output) == (2, "")
        assert error.startswith(
            f"aicsd: error: {tmp_path / 'm.safetensors'} holds weights that are not finite "
            "(classifier.bias): "
        )
        assert error.count("\n") == 1


def test_damage_of_a_model_file_is_noticed(tmp_path: Path) -> None:
    """The header is checked too: its classes would change their meaning."""
    path = tmp_path / "m.safetensors"
    save_model(build(), path)
    whole = path.read_bytes()
    for old, new in ((b"disc", b"dusc"), (b"0.485", b"0.486")):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="is damaged: its checksum is wrong"):
            load_model(path)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(UserError, match="is damaged: its checksum is wrong"):
        load_model(path)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    save_model(build(), tmp_path / "m.safetensors", {"method": "aicsd", "metrics": {"miou": 0.5}})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["aicsd"])
    assert (header["format"], header["family"]) == (2, "deeplabv3plus")
    assert header["classes"] == list(CLASS_NAMES)
    assert header["palette"] == [[1, 2, 3], [255, 0, 0], [0, 0, 255]]
    assert header["architecture"] == asdict(deeplabv3plus.Options(**MOBILENET))
    assert header["input"] == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": 1 / 255,
        "bgr": False,
        "multiple": 1,
        "least": 1,
        "size": None,
        "window": 0,
        "bicubic": False,
        "resizing": "stretch",
    }
    assert header["info"] == {"method": "aicsd", "metrics": {"miou": 0.5}}


def test_a_model_loads_without_the_weights_it_started_from(tmp_path: Path) -> None:
    timm_weights(tmp_path / "b.safetensors")
    model = build(weights=str(tmp_path / "b.safetensors"))
    save_model(model, tmp_path / "m.safetensors")
    (tmp_path / "b.safetensors").unlink()
    assert torch.equal(logits(load_model(tmp_path / "m.safetensors")), logits(model))


def test_a_model_in_channels_last_can_be_saved(tmp_path: Path) -> None:
    model = build()
    expected = logits(model)
    model.to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "m.safetensors")
    torch.testing.assert_close(logits(load_model(tmp_path / "m.safetensors")), expected)


def test_a_network_of_ones_own_is_saved_and_loads_into_a_module(tmp_path: Path) -> None:
    path, net = tmp_path / "m.safetensors", nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 1))
    model = Segmenter(
        net, CLASSES, InputSpec((0.5,) * 3, scale=1.0, bgr=True), align_corners=True,
        backbone="0", min_batch=3,
    )  # fmt: skip
    save_model(model, path)
    with pytest.raises(UserError, match=r"network of your own.*load_model\(path, net=module\)"):
        load_model(path)
    with pytest.raises(UserError, match="does not hold the model"):
        load_model(path, net=nn.Conv2d(3, 3, 1))
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 1))
    loaded = load_model(path, net=other)
    assert loaded.net is other
    assert not loaded.training
    assert (loaded.input, loaded.align_corners) == (model.input, True)
    assert (loaded.backbone, loaded.min_batch) == ("0", 3)
    assert loaded.origin is None
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(loaded.backbone_parameters()[0], net.get_parameter("0.weight"))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"no model at .*not finished: no {MODEL_FILE}"):
        load_model(tmp_path)


def test_weights_without_header_are_no_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="no model header"):
        load_model(tmp_path / "m.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return trace.touch, ()

    refusals = {"m.safetensors": "not a readable safetensors file", "m.pt": "could run code"}
    for name, words in refusals.items():
        torch.save({"state": Attack()}, tmp_path / name)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path / name)
        with pytest.raises(UserError):
            build_model(ModelConfig(**MOBILENET, weights=str(tmp_path / name)), CLASSES)
    assert not trace.exists()


def test_a_model_is_normalised_as_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build(), path)
    header = header_of(path)
    header["input"] |= {"mean": [0.5, 0.25, 0.0], "std": [1.0, 2.0, 4.0]}
    save_file(load_file(path), path, metadata={"aicsd": json.dumps(header)})
    loaded = load_model(path)
    assert loaded.input == InputSpec((0.5, 0.25, 0.0), (1.0, 2.0, 4.0))
    assert loaded.mean.flatten().tolist() == [0.5, 0.25, 0.0]


def test_a_file_of_the_first_format_loads(tmp_path: Path) -> None:
    path, model = tmp_path / "m.safetensors", build()
    save_model(model, path)
    header = header_of(path)
    architecture = {k: v for k, v in header["architecture"].items() if k != "released_layout"}
    old = {
        "format": 1,
        "architecture": {**architecture, "published_layout": False},
        "classes": header["classes"],
        "palette": header["palette"],
        "mean": [0.5, 0.25, 0.0],
        "std": [1.0, 2.0, 4.0],
        "info": {},
    }
    save_file(load_file(path), path, metadata={"aicsd": json.dumps(old)})
    loaded = load_model(path)
    assert loaded.input == InputSpec((0.5, 0.25, 0.0), (1.0, 2.0, 4.0))
    assert loaded.origin == model.origin
    assert torch.equal(logits(loaded.with_input(model.input)), logits(model))


def test_a_header_cannot_take_memory_that_its_file_does_not_fill(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.safetensors"
    save_model(build(), path)
    for changes in (
        {"aspp_channels": 60000},
        {"backbone": "convnext_xxlarge", "output_stride": 32},
    ):
        header = header_of(path)
        header["architecture"] |= changes
        lying = tmp_path / "lying.safetensors"
        save_file({"a": torch.zeros(1)}, lying, metadata={"aicsd": json.dumps(header)})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=r"does not hold the model.*keys missing"):
            load_model(lying)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 300_000, f"{grown / 1000:.0f} MB"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "header format 3"),
        ({"format": None}, "header format None"),
        ({"classes": ["a"]}, "does not hold the model"),
        ({"classes": None}, "does not hold the model"),
        ({"palette": [[1, 2]]}, "does not hold the model"),
        ({"palette": "red"}, "does not hold the model"),
        ({"input": {"mean": [0.5], "std": [1, 1, 1]}}, "does not hold the model"),
        ({"input": {"mean": [0, 0, 0], "std": None}}, "does not hold the model"),
        ({"input": {"mean": [0, 0, 0], "std": [1, 1, 1], "spam": 1}}, "does not hold the model"),
        ({"input": None}, "does not hold the model"),
        ({"palette": [[1, 2, 999]] * 3}, "does not hold the model"),
        ({"architecture": {**MOBILENET, "backbone": None}}, "does not hold the model"),
        ({"architecture": {"backbone": "resnet10t"}}, "does not hold the model"),
        ({"architecture": {**MOBILENET, "spam": 1}}, "does not hold the model"),
        ({"architecture": {**MOBILENET, "backbone": "no_such_net"}}, "no_such_net"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build(), path)
    header = {**header_of(path), **change}
    save_file(load_file(path), path, metadata={"aicsd": json.dumps(header)})
    with pytest.raises(UserError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", "3", "null"])
def test_a_broken_header_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"aicsd": text})
    with pytest.raises(UserError, match="header"):
        load_model(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(path)


def test_a_reader_of_the_old_file_never_sees_half_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build(seed=1), path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save_model(build(seed=2), path)
        assert reader.read() == before
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def fail_half_way(state: object, path: Path, metadata: object = None) -> None:
    path.write_bytes(b"half a file")
    raise OSError(28, "No space left on device")


def test_a_failing_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build(seed=1), path)
    before = path.read_bytes()
    monkeypatch.setattr(tensor_files, "save_file", fail_half_way)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        save_model(build(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.safetensors"
    save_model(build(seed=1), path)
    before, model = path.read_bytes(), build(seed=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            save_model(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_model(build(), tmp_path / "file" / "m.safetensors")
