"""The accelerator check at tiny size on the CPU, and what is staged for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from PIL import Image
from safetensors.torch import load_file, save_file
from timm import create_model

from aicsd.data.camvid import CLASSES, open_camvid
from aicsd.losses import list_losses
from aicsd.methods import list_methods
from aicsd.models import ModelConfig, build_model, load_model, save_model

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))


def run(out: Path, *more: object) -> tuple[int, dict[str, dict[str, Any]]]:
    import accelerator_check

    words = ("--out", out, "--device", "cpu", "--tiny", *more)
    code = accelerator_check.main([str(word) for word in words])
    items = json.loads((out / "report.json").read_text())["items"]
    assert (out / "summary.md").read_text().count("\n| values") <= 1
    return code, {item["name"]: item for item in items}


@pytest.mark.slow
def test_values_of_every_loss_and_method(tmp_path: Path) -> None:
    code, items = run(tmp_path, "--minutes_speed", "0", "--minutes_campaign", "0")
    wrong = {name: item for name, item in items.items() if item["status"] != "ok"}
    assert not wrong
    assert code == 0
    names = " ".join(items)
    assert all(f"{loss}, bfloat16" in names for loss in list_losses())
    assert all(f"two steps of {method}, 32-true" in items for method in list_methods())
    compiled = items["all losses, torch.compile"]["figures"]
    random = 3  # that are not compiled
    assert compiled["losses"] >= len(list_losses()) - random - 1
    assert items["deterministic mode"]["figures"]["difference_cut"] == 0


@pytest.mark.slow
def test_speed_of_everything(tmp_path: Path) -> None:
    code, items = run(tmp_path, "--minutes_values", "0", "--minutes_campaign", "0")
    assert code == 0
    assert {item["status"] for item in items.values()} == {"ok"}
    assert items["released scheme, 2x33x49"]["figures"]["images_per_second"] > 0
    assert items["all three, 2x3x33x49"]["figures"]["gradient_error"] < 1e-4
    assert items["input pipeline, one core"]["figures"]["images_per_second"] > 0
    summary = (tmp_path / "summary.md").read_text()
    assert f"| speed | {len(items)} | 0 | 0 | 0 |" in summary


def test_what_fails_or_takes_too_long_is_named_and_stays_on_disk(tmp_path: Path) -> None:
    import accelerator_check as script

    from benchmarks.accelerator_values import WrongValueError

    def wrong() -> dict[str, Any]:
        raise WrongValueError("value 3")

    def error() -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor it")

    report = script.Report(tmp_path, torch.device("cpu"))
    checks: list[tuple[str, Callable[[], dict[str, Any]]]]
    checks = [("a", lambda: {"x": 1.5}), ("b", wrong), ("c", error)]
    report.run("values", checks, 60)
    report.run("speed", checks, -1)
    items = json.loads((tmp_path / "report.json").read_text())["items"]
    assert [item["status"] for item in items] == ["ok", "wrong", "error"] + 3 * ["not run"]
    assert items[2]["detail"].startswith("RuntimeError: no kernel for it (test_accelerator.py:")
    assert "| values | 1 | 1 | 1 | 0 |" in (tmp_path / "summary.md").read_text()


def test_a_wrong_value_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import accelerator_values as values

    case = next(case for case in values.loss_cases() if case.name == "pixel_kd")
    cpu = torch.device("cpu")
    assert values.compare_loss(case, "float32", cpu, (2, 3, 5, 4))["gradient_error"] < 1e-5
    build = type(case).build

    class Less(torch.nn.Module):
        def __init__(self, loss: torch.nn.Module) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, **inputs: Any) -> torch.Tensor:
            value: torch.Tensor = self.loss(**inputs)
            return value * 0.99

    def less(self: Any, inputs: Any, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
        return Less(build(self, inputs, dtype)) if dtype == torch.float32 else build(self, inputs)

    monkeypatch.setattr(type(case), "build", less)
    with pytest.raises(values.WrongValueError, match=r"value_error 0\.01"):
        values.compare_loss(case, "float32", cpu, (2, 3, 5, 4))


def write_camvid(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            for folder, pixels in ((split, coarse), (f"{split}annot", coarse[..., 0] % 12)):
                path = root / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST).save(path)
    return root


def test_staged_files_and_the_campaign_that_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stage_accelerator

    from aicsd.cli import main
    from benchmarks import accelerator_campaign

    root = write_camvid(tmp_path / "camvid")
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL), CLASSES)
    save_model(model, tmp_path / "teacher.safetensors")
    weights = create_model("test_resnet", num_classes=0).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    monkeypatch.setattr(stage_accelerator, "missing_packages", lambda there: [])
    stage = tmp_path / "stage"
    stage_accelerator.main(
        ["--out", str(stage), "--root", str(root), "--limit", "1",
         "--teacher", str(tmp_path / "teacher.safetensors"),
         "--weights", str(tmp_path / "weights.safetensors")]
    )  # fmt: skip
    parts = sorted(stage.iterdir())
    assert [part.name for part in parts] == ["part1", "part2"]
    whole = tmp_path / "whole"
    for part in parts:
        assert sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) <= 2**20
        subprocess.run(["cp", "-r", f"{part}/.", whole], check=True)
    staged = open_camvid(whole / "camvid", "val")
    first, original = staged.read(0), open_camvid(root, "val").read(0)
    assert np.array_equal(first.mask, original.mask)
    assert np.array_equal(first.image, original.image)
    stage_accelerator.copy_dataset(root, tmp_path / "jpeg", quality=92)
    lossy = open_camvid(tmp_path / "jpeg", "val").read(0)
    assert 0 < np.abs(lossy.image.astype(int) - original.image).mean() < 12
    students = [ModelConfig(**TINY_MODEL, weights=str(folder / f"{name}.safetensors"))
                for folder, name in ((tmp_path, "weights"), (whole, "student"))]  # fmt: skip
    for one, half in (
        (model, load_model(whole / "teacher.safetensors")),
        tuple(build_model(config, CLASSES).net.get_submodule("backbone") for config in students),
    ):
        torch.testing.assert_close(half.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-4)
    assert load_file(whole / "student.safetensors")["conv1.0.weight"].dtype == torch.float16

    commands: list[list[str]] = []

    def start(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(accelerator_campaign, "run_process", start)
    monkeypatch.setattr(accelerator_campaign, "MPS_CONTROL", "no-such-program")
    some = ("--minutes_values", 0, "--minutes_speed", 0, "--minutes_campaign", 2)
    code, items = run(tmp_path / "out", *some, "--stage", whole)
    assert code == 0
    assert items["benchmark methods"]["status"] == "ok"
    (command,) = commands
    assert command[:5] == [sys.executable, "-m", "aicsd", "benchmark", "methods"]
    # what the command line makes of it: everything is read, and no second is left to train
    command[command.index("--minutes") + 1] = "0.0000001"
    with pytest.raises(SystemExit) as stop:
        main(command[3:])
    assert stop.value.code == 0
    code, items = run(tmp_path / "out", *some)
    assert "there is no camvid, student" in items["benchmark methods"]["detail"]
    # the teacher first, from what is staged for it
    shutil.copy(whole / "student.safetensors", whole / "backbone.safetensors")
    commands.clear()
    run(tmp_path / "two", *some, "--stage", whole, "--teacher_epochs", 3)
    train, methods = commands
    assert train[3] == "train"
    assert train[train.index("--epochs") + 1] == "3"
    taught = train[train.index("--run") + 1]
    assert methods[methods.index("--teacher") + 1] == taught == str(tmp_path / "two" / "teacher")
    help_of_train = {f"--{name}" for name in train_keys()}
    assert {word for word in train if word.startswith("--")} <= help_of_train


def train_keys() -> set[str]:
    """Flags that ``aicsd train`` knows, with those of its sections."""
    from aicsd.run_config import TrainConfig
    from aicsd.settings import leaves

    return {"config", *(name for name, _ in leaves(TrainConfig))}


def test_processes_share_a_device_where_a_program_can_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import accelerator_campaign

    control = tmp_path / "bin" / "control"
    control.parent.mkdir()
    control.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\ncat >> {tmp_path}/said\n')
    control.chmod(0o755)
    monkeypatch.setattr(accelerator_campaign, "MPS_CONTROL", "control")
    with accelerator_campaign.shared_device(tmp_path / "mps") as alone:
        assert alone == {}
    monkeypatch.setattr(accelerator_campaign, "MPS_PLACES", (str(control.parent),))
    with accelerator_campaign.shared_device(tmp_path / "mps") as shared:
        assert set(shared.values()) == {str(tmp_path / "mps")}
    assert (tmp_path / "said").read_text().split() == ["-d", "quit"]


def test_packages_that_are_missing_there() -> None:
    import stage_accelerator

    everything = stage_accelerator.missing_packages({"torch", "torchvision"})
    names = {package.split("==")[0] for package in everything}
    assert {"timm", "safetensors", "lightning-fabric"} <= names
    assert not names & {"torch", "torchvision", "sympy"}
    there = {name for name in names if name != "timm"}
    assert [p.split("==")[0] for p in stage_accelerator.missing_packages(there | {"torch"})] == [
        "timm",
        "torchvision",
    ]
