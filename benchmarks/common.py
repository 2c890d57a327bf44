"""How every benchmark measures and reports: ratios within one run, on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aicsd.benchmark.timing import machine
from aicsd.evaluation.cost import take_turns
from aicsd.files import write_text

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "performance.md"


def fastest(candidates: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Seconds of each candidate: the minimum over ``repeats``, after one call to warm up.

    The candidates take turns, so that a slow moment of the machine does not fall on one of them.
    """
    return {name: min(seconds) for name, seconds in take_turns(candidates, repeats).items()}


def report(
    name: str, figures: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Write ``results/NAME.json``, print the table and put it in its place in the page.

    The page has ``<!-- table: benchmarks.NAME -->`` and ``<!-- end of table -->`` around it.
    """
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), **figures}
    write_text(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    told = machine()
    note = f"{told['cpu']}, {told['cores']} cores, {told['threads']} threads, torch {told['torch']}"
    text = "\n".join([*lines, "", f"({note})"])
    print(text)
    begin, end = f"<!-- table: benchmarks.{name} -->", "<!-- end of table -->"
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE} has no place for the table: {begin} ... {end}")
    write_text(PAGE, f"{head}{begin}\n\n{text}\n\n{end}{tail}")
