"""Every mistake of a user: exit code 2, one line that tells how to mend it, nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from safetensors.torch import save_file
from tiny_runs import NO_REPORT, aicsd, files_below, train_command, train_lines
from user_errors import CASES, CONFIGS, DATA, TRAIN, assert_one_line

from aicsd.data import Classes
from aicsd.models import ModelConfig, build_model, save_model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound data, a teacher, and files with which something is wrong."""
    place = tmp_path_factory.mktemp("errors")
    write_folder(place / "data", {"train": 4, "val": 2})
    shutil.copytree(place / "data", place / "four_classes")
    (place / "four_classes" / "classes.txt").write_text("ground\ndisc\nbar\npost\n")
    classes = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    save_model(build_model(ModelConfig(**TINY_MODEL), classes), place / "teacher.safetensors")
    save_file({"a": torch.zeros(3)}, place / "other.safetensors")
    save_file({"conv1.0.weight": torch.zeros(1)}, place / "shape.safetensors")
    (place / "garbage").write_bytes(b"\xff\xfe\x00 neither YAML nor weights \x80")
    (place / "empty").mkdir()
    for name, text in CONFIGS.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def broken(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with its own ``data`` for a test to break."""
    shutil.copytree(workplace / "data", tmp_path / "data")
    shutil.copy(workplace / "teacher.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished_run(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    options = ("--epochs", "1", "--optimizer.ema", "0.5", *NO_REPORT)
    aicsd(*train_command(workplace / "data", run, *options))
    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A run whose result is missing, so that a resume needs the checkpoint."""
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("command", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_user_error(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
    command: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(workplace)
    before = list(files_below(workplace))
    assert_one_line(*run_cli(*shlex.split(command)), words)
    assert list(files_below(workplace)) == before


def test_data_check_of_a_sound_tree(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    monkeypatch.chdir(workplace)
    code, output, error = run_cli(*shlex.split(f"data check {DATA} --data.split 'train, val'"))
    assert (code, error) == (0, "")
    heads = [line for line in output.splitlines() if not line.startswith("  ")]
    assert heads == ["train: 4 images, 0 cannot be used", "val: 2 images, 0 cannot be used"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{TRAIN} --accelerator cuda", ["accelerator 'cuda'", "cannot be used here"]),
        (f"evaluate teacher.safetensors {DATA} --device cuda", ["device 'cuda'"]),
    ],
    ids=["train", "evaluate"],
)
def test_absent_device(broken: Path, run_cli: RunCli, command: str, words: list[str]) -> None:
    assert_one_line(*run_cli(*shlex.split(command)), words)
    assert not (broken / "out").exists()


def test_loss_that_is_not_finite(broken: Path, run_cli: RunCli) -> None:
    command = f"{TRAIN} --optimizer.lr 1e6 --epochs 4 --log_every 1 --save_every 1 --val_every 0"
    code, _, error = run_cli(*shlex.split(command))
    assert code == 2
    words = ["no longer finite", "step", "optimizer.lr", "optimizer.clip"]
    assert_one_line(code, "", error, words)
    run = broken / "out"
    # no model that only predicts nonsense, and nothing but numbers in the log
    assert not list(run.rglob("*.safetensors"))
    assert all(abs(line["loss"]) < float("inf") for line in train_lines(run))


BROKEN_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "other_keys": lambda path: torch.save({"epoch": 3}, path),
    "no_states": lambda path: torch.save({"progress": {}}, path),
    "code": lambda path: torch.save({"progress": os.system}, path),
}


@pytest.mark.parametrize("how", BROKEN_CHECKPOINTS)
def test_broken_checkpoint(run_copy: Path, run_cli: RunCli, how: str) -> None:
    checkpoint = run_copy / "checkpoints" / "last.pt"
    BROKEN_CHECKPOINTS[how](checkpoint)
    before = checkpoint.read_bytes()
    words = [f"checkpoint {checkpoint}", "run"]
    assert_one_line(*run_cli("train", "--run", run_copy, "--resume"), words)
    assert checkpoint.read_bytes() == before


def test_checkpoint_of_other_classes(run_copy: Path, workplace: Path, run_cli: RunCli) -> None:
    """data.root may change when a run is resumed; what is in it may not."""
    command = ["train", "--run", run_copy, "--resume", "--data.root", workplace / "four_classes"]
    assert_one_line(*run_cli(*command), ["started with the classes", "'post'", "another run"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optimizer.lr", "0.5"], ["optimizer.lr was 0.007 and now is 0.5"]),
        (["--seed", "3"], ["seed was 0 and now is 3"]),
        (["--data.augment.crop", "48"], ["data.augment.crop was 32 and now is 48"]),
        (["--model.aspp_channels", "16"], ["model.aspp_channels was 8 and now is 16"]),
        (
            ["--epochs", "2", "--optimizer.ema", "0"],
            ["epochs was 1 and now is 2", "optimizer.ema was 0.5 and now is 0"],
        ),
    ],
    ids=["lr", "seed", "crop", "model", "two"],
)
def test_resume_with_other_settings(
    run_copy: Path, run_cli: RunCli, flags: list[str], words: list[str]
) -> None:
    before = list(files_below(run_copy))
    result = run_cli("train", "--run", run_copy, "--resume", *flags)
    assert_one_line(*result, ["other settings", *words])
    assert list(files_below(run_copy)) == before


def test_resume_with_another_command(run_copy: Path, run_cli: RunCli) -> None:
    before = list(files_below(run_copy))
    result = run_cli("distill", "--run", run_copy, "--resume")
    assert_one_line(*result, ["'model.backbone'", "'student.backbone'"])
    assert list(files_below(run_copy)) == before


def test_resume_with_a_broken_config(run_copy: Path, run_cli: RunCli) -> None:
    (run_copy / "config.yaml").write_text("epochs: [1\n")
    result = run_cli("train", "--run", run_copy, "--resume")
    assert_one_line(*result, [f"config {run_copy / 'config.yaml'}, line 2", "YAML"])


def test_finished_run_is_not_overwritten(
    finished_run: Path, workplace: Path, run_cli: RunCli
) -> None:
    before = list(files_below(finished_run))
    result = run_cli(*train_command(workplace / "data", finished_run, "--epochs", "1"))
    assert_one_line(*result, [f"run: {finished_run} exists", "--resume"])
    assert list(files_below(finished_run)) == before


def test_images_whose_results_collide(workplace: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """The overlay of ``a`` has the name of the class ids of ``a_overlay``."""
    for name in ("a.png", "a_overlay.png"):
        shutil.copy(workplace / "data" / "images" / "val" / "000.png", tmp_path / name)
    command = ["predict", workplace / "teacher.safetensors", tmp_path, "--out", tmp_path / "out"]
    assert_one_line(*run_cli(*command), ["a.png and", "a_overlay.png", "different folders"])
    assert not (tmp_path / "out").exists()


def test_file_that_does_not_hold_its_model(
    workplace: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """The header names another width than the weights have."""
    classes = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    config = ModelConfig(**TINY_MODEL)
    model = build_model(config, classes)
    assert model.origin is not None
    model.origin.options["aspp_channels"] = replace(config, aspp_channels=16).aspp_channels
    save_model(model, tmp_path / "odd.safetensors")
    command = ["evaluate", tmp_path / "odd.safetensors", *shlex.split(DATA)]
    assert_one_line(
        *run_cli(*command[:2], "--data.name", "folder", "--data.root", workplace / "data"),
        ["odd.safetensors does not hold"],
    )


def test_debug_shows_the_traceback(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    from aicsd.cli import main
    from aicsd.errors import UserError

    monkeypatch.setenv("AICSD_DEBUG", "1")
    with pytest.raises(UserError, match="no model at nowhere"):
        main(["evaluate", "nowhere"])
