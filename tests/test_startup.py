"""Imports: a help page needs no PyTorch, a reading command no training."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aicsd
from aicsd.cli import COMMANDS

HEAVY = {
    "torch",
    "lightning_fabric",
    "timm",
    "torchvision",
    "scipy",
    "matplotlib",
    "jinja2",
    "rich",
}
PROGRAM = """
import json, os, sys, time
os.environ["COLUMNS"] = "100"
found, names, begin = [], set(), 0.0
for statement in json.loads(sys.argv[1]):
    code = 0
    try:
        exec(statement)
    except SystemExit as stop:
        code = stop.code
    end = time.process_time()
    found.append([code, end - begin, sorted(set(sys.modules) - names)])
    names, begin = set(sys.modules), end
print(json.dumps(found))
"""


def imported_by(*statements: str) -> list[tuple[set[str], float]]:
    """Modules that are new after each statement in a new process, and its processor time in s."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(statements)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(code in (0, None) for code, _, _ in found), done.stderr
    return [(set(modules), seconds) for _, seconds, modules in found]


def test_help_needs_no_pytorch() -> None:
    commands = ["", *COMMANDS, "data check", "data convert", "benchmark cost"]
    pages = [f"from aicsd.cli import main; main({[*c.split(), '--help']})" for c in commands]
    for command, (modules, seconds) in zip(commands, imported_by(*pages), strict=True):
        assert not modules & HEAVY, command
        assert "aicsd.engine.run" not in modules, command
        assert seconds < 1.2, command  # the first takes 0.1 to 0.3 on an idle processor


def test_every_command_has_a_module() -> None:
    for name, entry in COMMANDS.items():
        assert entry.load(), name


def test_a_loss_imports_pytorch_alone_and_reading_a_run_no_training(
    baseline: Path, tmp_path: Path
) -> None:
    run = str(baseline)
    read = [
        ["evaluate", run],
        ["benchmark", "table", run],
        ["report", run, "--out", str(tmp_path / "page.html"), "--images", "1"],
    ]
    calls = [f"from aicsd.cli import main; main({words})" for words in read]
    (loss, _), *others = imported_by("from aicsd.losses import ICSDLoss", *calls)
    assert "torch" in loss
    assert not loss & (HEAVY - {"torch"})
    assert "aicsd.engine" not in loss
    assert (tmp_path / "page.html").is_file()
    modules = set().union(*(found for found, _ in others))
    assert {"aicsd.evaluation.evaluate", "aicsd.benchmark.table"} <= modules
    assert not {"lightning_fabric", "aicsd.engine", "aicsd.distiller"} & modules


def test_public_names() -> None:
    """Types, modules and the list of names agree, and each name is there."""
    tree = ast.parse(Path(aicsd.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: str(node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = aicsd._HOMES
    assert typed == {name: module for module, names in homes.items() for name in names}
    assert {*typed, "__version__"} == set(aicsd.__all__)
    for name, module in typed.items():
        found = getattr(aicsd, name)
        assert found is getattr(sys.modules[module], name)
        assert found.__doc__, name
    assert set(aicsd.__all__) <= set(dir(aicsd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aicsd.nothing  # type: ignore[attr-defined]
