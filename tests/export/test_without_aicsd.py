"""The lines of docs/export.md run where nothing but ONNX Runtime, NumPy and Pillow is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES
from PIL import Image

from aicsd.data import Classes
from aicsd.models import ModelConfig, build_model

pytest.importorskip("onnxscript", reason="needs aicsd[export]")
pytest.importorskip("onnxruntime", reason="needs aicsd[export]")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
PALETTE = ((0, 0, 0), (200, 30, 0), (0, 30, 200))


def lines() -> str:
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"<!-- without aicsd -->\n```python\n(.*?)```\n<!-- end of without aicsd -->"
    (block,) = re.findall(pattern, text, re.DOTALL)
    return str(block)


def test_ten_lines() -> None:
    assert len([line for line in lines().splitlines() if line]) <= 10
    assert not re.search(r"import (aicsd|torch)", lines())


@pytest.mark.slow
def test_in_a_clean_environment(tmp_path: Path) -> None:
    from aicsd.export import export_model

    place = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy", "pillow"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install here: {done.stderr.strip().splitlines()[-1]}")

    torch.manual_seed(0)
    config = ModelConfig("test_resnet", 32, 8, 8, 4)
    model = build_model(config, Classes(CLASS_NAMES, PALETTE)).eval()
    export_model(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8))
    small.resize((131, 97)).save(tmp_path / "photo.jpg")
    found = subprocess.run(
        [python, "-I", "-c", lines()], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr

    # decoded by Pillow there and here: another decoder gives other pixels
    pixels = np.asarray(Image.open(tmp_path / "photo.jpg").convert("RGB"))
    wanted = model.predict(pixels)
    shown = np.asarray(Image.open(tmp_path / "classes.png"))
    equal = (shown == np.array(PALETTE, np.uint8)[wanted]).all(axis=-1)
    assert equal.mean() >= 0.999
    assert found.stdout.strip() == str([CLASS_NAMES[i] for i in np.unique(wanted)])
