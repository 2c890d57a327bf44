"""The programs of docs/deploy.md, and what they need beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_exports import exported
from tiny_network import tiny_model

from aicsd.formats import Format

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "deploy.md"


def program(name: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    pattern = rf"<!-- program: {re.escape(name)} -->\n```\w+\n(.*?)```\n"
    (found,) = re.findall(pattern, text, re.DOTALL)
    return str(found)


def bring_photo(place: Path) -> None:
    """A real photo, in colours and sizes that no test made up."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn for its photos")
    photo = Image.fromarray(datasets.load_sample_image("china.jpg")).crop((200, 100, 361, 213))
    photo.save(place / "photo.png")
    photo.save(place / "photo.ppm")


def bring(known: Format, place: Path) -> None:
    """Put the file with the arg max inside where the program looks for it."""
    path, _ = exported(known, "labels", known.one_size)
    for file in known.files(path):
        shutil.copy(file, place / f"labels{file.suffix}")


def wanted(place: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    photo = Image.open(place / "photo.png")
    return tiny_model().predict(np.asarray(photo if size is None else photo.resize(size[::-1])))


def run(command: list[str | Path], place: Path, **more: str) -> None:
    found = subprocess.run(
        command,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **more},
    )
    assert found.returncode == 0, found.stderr
