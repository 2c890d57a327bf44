"""aicsd visualize."""

from __future__ import annotations

from typing import Any

from aicsd.cli.parser import Command
from aicsd.commands import visualize


def run(**options: Any) -> int:
    for file in visualize(**options):
        print(file)
    return 0


COMMAND = Command(visualize, run, example="aicsd visualize runs/alone runs/aicsd --out pictures")
