"""Data of a run at another place: what its masks mean is known from the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aicsd.config import build_config
from aicsd.errors import UserError
from aicsd.inputs import open_split
from aicsd.run_config import TrainConfig
from aicsd.runs import RunFolder

STORED = np.array([[0, 255], [255, 0]], np.uint8)
VALUES = {0: "ground", 255: "thing"}


def write_data(root: Path) -> Path:
    for kind, array in (("images", np.zeros((2, 2, 3), np.uint8)), ("masks", STORED)):
        (root / kind / "val").mkdir(parents=True)
        Image.fromarray(array).save(root / kind / "val" / "a.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The config of a run on masks of 0 and 255."""
    data = {"name": "folder", "root": str(tmp_path / "gone"), "options": {"mask_values": VALUES}}
    keys = {"run": str(tmp_path / "run"), "data": data}
    RunFolder(tmp_path / "run").save_config(asdict(build_config(TrainConfig, keys)))
    return tmp_path / "run"


@pytest.mark.parametrize("name", [None, "folder"])
def test_masks_mean_what_they_meant_in_training(
    run: Path, tmp_path: Path, name: str | None
) -> None:
    data = {"name": name, "root": str(write_data(tmp_path / "moved"))}
    assert np.array_equal(open_split(data, run).read(0).mask, STORED // 255)
    assert np.array_equal(open_split(data, run / "best.safetensors").read(0).mask, STORED // 255)


def test_options_that_are_given_count(run: Path, tmp_path: Path) -> None:
    root = str(write_data(tmp_path / "moved"))
    other = {"root": root, "options": {"mask_values": {0: "thing", 255: "ground"}}}
    assert np.array_equal(open_split(other, run).read(0).mask, 1 - STORED // 255)
    plain = open_split({"root": root}, tmp_path / "model.safetensors")  # of no run
    assert np.array_equal(plain.read(0).mask, STORED)


def test_a_run_in_the_home_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_data(tmp_path / "gone")
    assert len(open_split(None, "~/run")) == 1
    with pytest.raises(UserError, match="is not a run folder"):
        open_split(None, "~/nothing")
