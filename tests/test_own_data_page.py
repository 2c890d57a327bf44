"""Every command of the page "Few labels, many photos" runs, on tiny photos with tiny networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from convert_sources import photo, save_colors
from test_docs import shell_commands
from test_readme import flags_without_report

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "own-data.md"


def table_of_the_page() -> str:
    (table,) = re.findall(r"```\n(name,r,g,b\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(table)


def write_facade(root: Path) -> None:
    """The page's folder: photos, masks in colours with an alpha channel, photos without masks."""
    rows = [line.split(",") for line in table_of_the_page().splitlines()[1:]]
    colors: dict[int, Sequence[int]] = {
        number: (*map(int, row[1:]), 255) for number, row in enumerate(rows)
    }
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("unlabelled", 3)):
        for number in range(count):
            photo(root / "images" / split / f"{split}{number}.jpg", (48, 64))
            if split != "unlabelled":
                ids = np.repeat(np.repeat(rng.integers(0, len(rows), (6, 8)), 8, 0), 8, 1)
                save_colors(root / "masks_rgb" / split / f"{split}{number}.png", ids, colors)


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    write_facade(tmp_path / "facade")
    (tmp_path / "colors.csv").write_text(table_of_the_page())
    monkeypatch.chdir(tmp_path)
    commands = [command[1:] for command in shell_commands(PAGE)]
    assert [command[0] for command in commands] == [
        "data",
        "data",
        "train",
        "distill",
        "distill",
        "evaluate",
        "report",
        "predict",
        "export",
    ]
    outputs = []
    for command in commands[:-1]:  # the slow export runs in test_readme.py
        code, output, error = run_cli(*command, *flags_without_report(command))
        assert code == 0, (command, error)
        outputs.append(output)
    assert "4 train, 2 val, 3 unlabelled; 8 classes" in outputs[0]
    assert "unlabelled: 3 images, 0 cannot be used" in outputs[1]
    assert len(list((tmp_path / "predictions").glob("*_overlay.png"))) == 3
