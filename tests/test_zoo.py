"""The trained networks of the repository are whole, and do what their cards say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import RunCli
from sklearn.datasets import load_sample_image

from aicsd.models import load_model

ZOO = Path(__file__).parents[1] / "zoo"
FILES = sorted(ZOO.glob("*.safetensors"))
MOST_BYTES = 2 * 10**6


def street() -> np.ndarray:
    """(360, 480, 3) uint8 RGB: sky over a road, as plain as can be."""
    image = np.full((360, 480, 3), (200, 215, 235), np.uint8)
    image[180:] = (90, 90, 95)
    return image


def test_every_network_has_a_card_and_a_row() -> None:
    assert FILES
    table = (ZOO / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        assert path.with_suffix(".md").is_file()
        assert f"({path.stem}.md)" in table
        assert path.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_card_has_the_number_of_parameters(path: Path) -> None:
    model = load_model(path)
    assert f"{model.num_parameters() / 1e6:.2f} M" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("path", sorted(ZOO.glob("camvid_*.safetensors")), ids=lambda p: p.stem)
def test_a_street_has_sky_above_and_road_below(path: Path) -> None:
    model = load_model(path)
    found = model.predict(street())
    names = model.classes.names
    assert np.mean(found[:120] == names.index("Sky")) > 0.9
    assert np.mean(found[260:] == names.index("Road")) > 0.7


@pytest.mark.parametrize("path", sorted(ZOO.glob("facade_*.safetensors")), ids=lambda p: p.stem)
def test_a_pagoda_is_a_building_between_sky_and_trees(path: Path) -> None:
    model = load_model(path)
    found = model.predict(load_sample_image("china.jpg"))
    names = model.classes.names
    for name, rows, columns in (
        ("sky", slice(0, 200), slice(350, 530)),
        ("building", slice(150, 330), slice(120, 290)),
        ("vegetation", slice(350, 427), slice(380, 640)),
    ):
        assert np.mean(found[rows, columns] == names.index(name)) > 0.9, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_command_of_the_readme(path: Path, tmp_path: Path, run_cli: RunCli) -> None:
    photo = tmp_path / "street.jpg"
    photo.write_bytes(cv2.imencode(".jpg", street()[..., ::-1])[1].tobytes())
    code, _, error = run_cli("predict", path, photo, "--out", tmp_path / "predictions")
    assert code == 0, error
    assert list((tmp_path / "predictions").rglob("street*.png"))
