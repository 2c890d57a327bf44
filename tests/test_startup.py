"""What is imported for what: a help page needs no PyTorch, a reading command no training."""

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
code = 0
try:
    exec(sys.argv[1])
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, time.process_time(), sorted(sys.modules)]))
"""


def imported_by(statement: str) -> tuple[set[str], float]:
    """Names of all modules after ``statement`` in a new process, and its processor time in s."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, statement],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    code, seconds, modules = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None), done.stderr
    return set(modules), seconds


def test_a_loss_costs_no_more_than_pytorch() -> None:
    modules, _ = imported_by("from aicsd.losses import ICSDLoss")
    assert "torch" in modules
    assert not modules & (HEAVY - {"torch"})
    assert "aicsd.engine" not in modules


@pytest.mark.parametrize("command", ["", *COMMANDS, "data check", "data convert", "benchmark cost"])
def test_help_needs_no_pytorch(command: str) -> None:
    words = [*command.split(), "--help"]
    modules, seconds = imported_by(f"from aicsd.cli import main; main({words})")
    assert not modules & HEAVY
    assert "aicsd.engine.run" not in modules
    assert seconds < 1.2  # 0.1 to 0.3 on an idle processor


def test_every_command_has_a_module() -> None:
    for name, entry in COMMANDS.items():
        assert entry.load(), name


def test_reading_a_run_imports_no_training(runs: Path, tmp_path: Path) -> None:
    run = str(runs / "alone")
    read = [
        ["evaluate", run],
        ["benchmark", "table", run],
        ["report", run, "--out", str(tmp_path / "page.html"), "--images", "1"],
    ]
    modules, _ = imported_by(f"""
from contextlib import suppress
from aicsd.cli import main
for words in {read}:
    with suppress(SystemExit):
        main(words)
""")
    assert (tmp_path / "page.html").is_file()
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
