"""Every command and block of the page "Bring your own teacher" runs, on a tiny local network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, write_folder
from test_docs import shell_commands
from test_readme import QUICK_FLAGS, TINY_DATA, TINY_FLAGS
from tiny_runs import NO_REPORT, train_lines
from tiny_transformers import tiny_network

import aicsd
from aicsd.models import load_model
from aicsd.teacher.class_map import read_class_map

PAGE = Path(__file__).parent.parent / "docs" / "bring-your-own-teacher.md"
THEIRS = ("floor", "wall", "ball", "stick", "sky")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def prepare(place: Path) -> None:
    """Files that the page assumes: data, a folder of transformers, the file of classes."""
    write_folder(place / "my_data")
    tiny_network("segformer", THEIRS).save_pretrained(place / "my_segformer")
    (file,) = blocks("yaml")
    (place / "classes.yaml").write_text(file)
    assert set(read_class_map(place / "classes.yaml")) == set(THEIRS)


def flags_of(command: list[str]) -> list[str]:
    if command[0] == "data":
        return ["--crop", "32"]
    if command[0] != "distill":
        return []
    has_family = "--student.family" in command
    own = [*TINY_FLAGS, "--student.weights", "none"] if has_family else QUICK_FLAGS["distill"]
    return [*own, *NO_REPORT]


@pytest.mark.slow
def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [command[1:] for command in shell_commands(PAGE)]
    assert [command[0] for command in commands] == [
        "evaluate",
        "data",
        "distill",
        "distill",
        "distill",
        "distill",
        "evaluate",
    ]
    for command in commands:
        code, output, error = run_cli(*command, *flags_of(command))
        assert code == 0, (command, error)
        if command[0] == "data":
            assert "teacher on val, mIoU %:" in output
    assert all(line["loss/maps"] > 0 for line in train_lines(Path("runs/features")))
    for run, family in (("unet", "smp"), ("segformer", "transformers")):
        origin = load_model(Path("runs") / run).origin
        assert origin is not None
        assert origin.family == family


def test_the_blocks_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    distill = aicsd.distill

    def quick(teacher: Any, student: Any, data: str, **given: Any) -> Any:
        options = {"epochs": 1, "report_images": 0, **given}
        return distill(teacher, student, {"root": data, **TINY_DATA}, **options)

    monkeypatch.setattr(aicsd, "distill", quick)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["run"].metrics["teacher"]["miou"] >= 0
    assert load_model("runs/modules").origin is not None
