"""Which dataset is meant: by its name, by what a root holds, or by objects in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_MODEL, RunCli, write_folder
from dataset_trees import cityscapes, voc
from tiny_runs import FIT_FLAGS, NO_REPORT, model_flags

import aicsd
from aicsd.data import Splits, data_settings, open_dataset
from aicsd.data.open import AUTO, DATASETS, classes_by_count, find_name
from aicsd.data.settings import DataConfig
from aicsd.errors import UserError
from aicsd.settings import settings_of


def test_a_root_is_never_left_aside(tmp_path: Path, run_cli: RunCli) -> None:
    """A root without a name decides which dataset is meant; beside generated data it is refused."""
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    code, output, error = run_cli("data", "check", "--data.root", root)
    assert code == 0, error
    assert "train: 4 images" in output
    assert "disc" in output
    flags = ("--data.batch_size", 2, "--epochs", 1, *FIT_FLAGS, *NO_REPORT, *model_flags("model"))
    run = tmp_path / "run"
    code, _, error = run_cli("train", "--data.root", root, *flags, "--run", run)
    assert code == 0, error
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (saved["name"], saved["root"]) == ("folder", str(root))
    for command in (("data", "check"), ("train", *flags, "--run", tmp_path / "other")):
        code, _, error = run_cli(*command, "--data.name", "digits", "--data.root", root)
        assert (code, error.count("\n")) == (2, 1)
        assert f"data.root is {root}, but dataset 'digits' is generated" in error
    assert not (tmp_path / "other").exists()


def test_the_layout_that_is_there(tmp_path: Path) -> None:
    voc(tmp_path / "voc")
    write_folder(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    assert find_name(AUTO, None) == "digits"
    assert find_name(AUTO, str(tmp_path / "voc")) == "voc"
    assert find_name(AUTO, str(tmp_path / "own")) == "folder"
    for other in ("empty", "nowhere"):
        with pytest.raises(UserError, match="classes"):
            open_dataset(AUTO, str(tmp_path / other), "train")
    # of two layouts none is guessed
    cityscapes(tmp_path / "voc")
    assert find_name(AUTO, str(tmp_path / "voc")) == "folder"
    assert len(open_dataset("voc", str(tmp_path / "voc"), "train")) == 2


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", {"train": 1, "val": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("folder", "~/data", "train")) == 1
    assert data_settings("~/data") == ({"root": "~/data"}, None)
    with pytest.raises(UserError, match=r"data\.root: ~nobody_here/data cannot be found"):
        open_dataset("folder", "~nobody_here/data", "train")


def test_a_name_comes_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_settings("voc") == ({"name": "voc"}, None)
    (tmp_path / "voc").mkdir()
    with pytest.raises(UserError, match="'voc' is a dataset and a folder here"):
        data_settings("voc")
    for data in ("./voc", tmp_path / "voc", Path("voc")):
        assert data_settings(data) == ({"root": str(data)}, None)
    assert data_settings({"name": "voc", "root": "x"}) == ({"name": "voc", "root": "x"}, None)
    with pytest.raises(UserError, match=r"no folder citscapes, and no dataset; did you mean"):
        data_settings("citscapes")


def test_settings_know_their_dataset(tmp_path: Path) -> None:
    write_folder(tmp_path / "own")
    assert DataConfig().named().name == "digits"
    own = str(tmp_path / "own")
    assert DataConfig(root=own).named() == DataConfig("folder", own)
    with pytest.raises(UserError, match="unknown dataset 'foldr'; did you mean 'folder'"):
        DataConfig("foldr")
    with pytest.raises(UserError, match="generated and reads no files"):
        DataConfig("digits", str(tmp_path))
    documented = settings_of(DataConfig)["name"].help
    assert "auto" in documented
    assert all(name in documented for name in DATASETS)


def test_classes_by_their_number() -> None:
    assert classes_by_count(19) == DATASETS["cityscapes"].classes
    assert classes_by_count(21) == DATASETS["voc"].classes
    assert classes_by_count(11) is None  # there are two
    assert classes_by_count(255) is None


def test_datasets_in_memory(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    train, val = (
        open_dataset("digits", None, split, {"size": 32, "scenes": 4}) for split in ("train", "val")
    )
    settings: dict[str, Any] = {"batch_size": 2, "workers": 0, "augment": {"crop": 32}}
    assert data_settings(Splits(train, val)) == ({}, Splits(train, val))
    assert data_settings((train, val)) == ({}, Splits(train, val))
    for keys in ({"train": train}, {"val": val}, {"train": train, "val": val, "name": "digits"}):
        with pytest.raises(UserError, match="give train and val, both datasets in memory"):
            data_settings(keys)
    options: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "logger": "none"}
    weights = []
    spellings: list[dict[str, Any]] = [
        {"train": train, "val": val},
        {"name": "digits", "options": {"size": 32, "scenes": 4}},
    ]
    for number, data in enumerate(spellings):
        run = aicsd.train(TINY_MODEL, {**settings, **data}, tmp_path / str(number), **options)
        weights.append({name: w.sum().item() for name, w in run.student.state_dict().items()})
        assert run.metrics["images"] == 4
    saved = yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())["data"]["name"]
    with pytest.raises(UserError, match="the data of this run were in memory"):
        open_dataset(saved, None, "val")
    again = aicsd.train(
        TINY_MODEL, {**settings, "train": train, "val": val}, tmp_path / "0", resume=True, **options
    )
    assert again.metrics == json.loads((tmp_path / "0" / "metrics.json").read_text())
    assert weights[0] == weights[1]
