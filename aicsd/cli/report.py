"""aicsd report."""

from __future__ import annotations

from typing import Any

from aicsd.cli.parser import Command
from aicsd.commands import report


def run(**options: Any) -> int:
    out = report(**options)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


COMMAND = Command(report, run, example="aicsd report runs/alone runs/aicsd -o report.html")
