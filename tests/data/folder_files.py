"""Images and masks of three classes for tests of a user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aicsd.data import SegDataset, open_dataset
from aicsd.errors import UserError

RNG = np.random.default_rng(0)
MASK = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
COLORS = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]], np.uint8)
TABLE = "name,r,g,b\nground,0,0,0\ndisc,200,30,30\nbar,30,200,30\n"


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, array: np.ndarray = MASK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_names(root: Path) -> Path:
    (root / "classes.txt").write_text("ground\ndisc\nbar\n")
    return root


def train(root: Path, **options: Any) -> SegDataset:
    return open_dataset("folder", str(root), "train", options)


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        train(root, **options).read(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BINARY = np.where(MASK > 0, 255, 0).astype(np.uint8)
