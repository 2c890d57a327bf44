"""The lines of docs/export.md run with ONNX Runtime, NumPy and Pillow alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASS_NAMES
from PIL import Image
from tiny_exports import exported
from tiny_network import CLASSES, tiny_model

from aicsd.formats import onnx

pytest.importorskip("onnxscript", reason="needs aicsd[export]")
pytest.importorskip("onnxruntime", reason="needs aicsd[export]")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def lines() -> str:
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"<!-- without aicsd -->\n```python\n(.*?)```\n<!-- end of without aicsd -->"
    (block,) = re.findall(pattern, text, re.DOTALL)
    return str(block)


def test_ten_lines() -> None:
    assert len([line for line in lines().splitlines() if line]) <= 10
    assert not re.search(r"import (aicsd|torch)", lines())


def test_nothing_of_aicsd_or_pytorch_is_needed(tmp_path: Path) -> None:
    path, _ = exported(onnx.FORMAT)
    shutil.copy(path, tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8))
    small.resize((131, 97)).save(tmp_path / "photo.jpg")
    missing = "import sys\nfor name in ('aicsd', 'torch'):\n    sys.modules[name] = None\n"
    found = subprocess.run(
        [sys.executable, "-I", "-c", missing + lines()], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr

    # decoded by Pillow there and here: another decoder gives other pixels
    pixels = np.asarray(Image.open(tmp_path / "photo.jpg").convert("RGB"))
    wanted = tiny_model().predict(pixels)
    shown = np.asarray(Image.open(tmp_path / "classes.png"))
    equal = (shown == np.array(CLASSES.palette, np.uint8)[wanted]).all(axis=-1)
    assert equal.mean() >= 0.999
    assert found.stdout.strip() == str([CLASS_NAMES[i] for i in np.unique(wanted)])
