"""Files that are no checkpoint of the released code, or would run code, are refused in one line."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunCli
from released_files import State, checkpoint, hollow

from aicsd.errors import UserError
from aicsd.models.sources.released import read_checkpoint


def renamed(state: State, old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in state.items()}


def without(state: State, *parts: str) -> State:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


BAD_STATES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "missing": (
        lambda: without(hollow(), "layer2.1.bn1.running_mean", "decoder.last_conv.8"),
        ["resnet18", "3 keys missing", "backbone.layer2.1.bn1.running_mean", "last_conv.8.bias"],
    ),
    "missing_many": (
        lambda: without(hollow(), "aspp."),
        ["30 keys missing: aspp.aspp1.atrous_conv.weight", "and 25 more"],
    ),
    "unknown": (
        lambda: {**hollow(), "backbone.layer1.0.se.weight": torch.zeros(1)},
        ["1 keys unknown: backbone.layer1.0.se.weight"],
    ),
    "another_shape": (
        lambda: {**hollow(), "aspp.bn1.bias": torch.zeros(3)},
        ["1 of another shape: aspp.bn1.bias is (3,), needs (256,)"],
    ),
    "other_copy": (
        lambda: {
            **hollow("mobilenetv2_100"),
            "backbone.low_level_features.0.1.bias": torch.ones(32),
        },
        ["mobilenetv2_100", "1 keys unknown: backbone.low_level_features.0.1.bias"],
    ),
    "xception": (
        lambda: {"backbone.block1.rep.0.conv1.weight": torch.zeros(1)},
        ["backbone Xception", "resnet101", "mobilenetv2_100"],
    ),
    "drn": (lambda: {"backbone.layer5.0.conv1.weight": torch.zeros(1)}, ["backbone DRN"]),
    "other_depth": (
        lambda: without(hollow(), "layer3.1."),
        ["ResNet with (2, 2, 1, 2) blocks", "resnet34"],
    ),
    "classifier_only": (lambda: {"fc.weight": torch.zeros(1)}, ["no backbone", "fc.weight"]),
    "no_tensor": (lambda: {**hollow(), "aspp.bn1.bias": 3.0}, ["'aspp.bn1.bias' is a float"]),
    "number_as_key": (lambda: {3: torch.zeros(1)}, ["3 is a Tensor"]),
    "empty": (dict, ["state_dict is empty"]),
    "many_classes": (lambda: hollow(classes=300), ["300 classes; 1 to 255"]),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_what_does_not_fit_is_refused(tmp_path: Path, run_cli: RunCli, name: str) -> None:
    make, words = BAD_STATES[name]
    torch.save({"state_dict": make()}, tmp_path / "x.pth.tar")
    out = tmp_path / "x.safetensors"
    assert_refused(run_cli("import", tmp_path / "x.pth.tar", "-o", out), ["x.pth.tar", *words])
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable checkpoint"),
        (b"garbage", "not a readable checkpoint"),
        (b"\x80\x02garbage", "not a readable checkpoint"),
        (b"PK\x03\x04" + bytes(64), "not a readable checkpoint"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"state_dict": [1]}, "state_dict is empty or no dict"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, run_cli: RunCli, content: object, words: str
) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert_refused(run_cli("import", path, "-o", tmp_path / "o.safetensors"), ["x.pth", words])


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, run_cli: RunCli) -> None:
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth.tar"
        torch.save(checkpoint(hollow()), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:-200])
        result = run_cli("import", path, "-o", tmp_path / "o.safetensors")
        assert_refused(result, ["not a readable checkpoint"])


def test_arguments_that_cannot_be(tmp_path: Path, run_cli: RunCli) -> None:
    source, out = tmp_path / "x.pth.tar", tmp_path / "o.safetensors"
    torch.save(checkpoint(hollow()), source)
    nowhere = run_cli("import", tmp_path / "y.pth.tar", "-o", out)
    assert_refused(nowhere, ["no checkpoint at", "y.pth.tar"])
    stride = run_cli("import", source, "-o", out, "--output_stride", "12")
    assert_refused(stride, ["output_stride is 12"])
    classes = run_cli("import", source, "-o", out, "--classes", tmp_path / "none.txt")
    assert_refused(classes, ["none.txt"])
    assert_refused(run_cli("import", source, "-o", tmp_path / "o.pth"), ["end in .safetensors"])
    assert sorted(tmp_path.iterdir()) == [source]
    out.write_text("mine")
    assert_refused(run_cli("import", source, "-o", out), ["exists", "choose another"])
    assert out.read_text() == "mine"


def assert_refused(result: tuple[int, str, str], words: list[str]) -> None:
    code, output, error = result
    assert code == 2, output
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error


class Attack:
    """Calls ``function`` when it is unpickled as usual."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "place"),
    [(os.system, "best_pred"), (builtins.exec, "state_dict"), (Path.touch, "optimizer")],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_an_attack_is_refused_and_not_run(
    tmp_path: Path, run_cli: RunCli, function: Callable[..., Any], place: str, zipped: bool
) -> None:
    trace, path = tmp_path / "executed", tmp_path / "x.pth.tar"
    argument = {
        os.system: f"touch {trace}",
        builtins.exec: f"open({str(trace)!r}, 'w')",
        Path.touch: trace,
    }[function]
    content = {**checkpoint(hollow()), place: Attack(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    out = tmp_path / "x.safetensors"
    words = ["x.pth.tar holds", "could run code"]
    assert_refused(run_cli("import", path, "-o", out), words)
    data = ["--data.name", "digits"]
    assert_refused(run_cli("evaluate", path, *data), words)
    assert sorted(tmp_path.iterdir()) == [path]
    # the payload is a real one
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("dtype", ["O8", "V8", "U4", "M8"])
def test_numpy_scalars_that_are_no_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    scalar: Any = np.float64(1).__reduce__()[0]
    content = checkpoint(hollow(), best_pred=Attack(scalar, np.dtype(dtype), b"12345678"))
    torch.save(content, tmp_path / "x.pth.tar")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "x.pth.tar")
