"""The tables of docs/results are those that the results files beside them give."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from aicsd.benchmark.methods_render import markdown
from aicsd.benchmark.methods_results import read_results
from aicsd.benchmark.methods_table import Statistics

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SECTIONS = {
    "camvid-cpu/long.json": ("With a teacher that stays ahead, 40 epochs",),
    "camvid-cpu/few.json": ("Few labels",),
    "camvid-cpu/methods.json": ("Methods beside each other, 12 epochs", "How `strong` was found"),
}
"""Headings on the page of CamVid below which the table is that of a results file."""
STRONG = "dist + feature_kd"
NAMES = {
    "camvid-cpu/methods.json": {"strong": STRONG, f"{STRONG}, now strong": STRONG},
}
"""Rows of a results file that have another name on the page."""
IN_README = {
    "camvid-cpu/long.json": ("none", "dist", "aicsd"),
    "camvid-cpu/few.json": ("none", "dist and photos", "aicsd and photos"),
    "camvid-cpu/methods.json": ("none", "dist", STRONG, "aicsd"),
}


def tables(text: str) -> list[dict[str, str]]:
    """Rows of all tables of a Markdown text; cells by the names of their columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.replace("`", "").replace("\N{MINUS SIGN}", "-").splitlines()
        head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
        found += [dict(zip(head, cells, strict=True)) for cells in body]
    return found


def section(heading: str) -> str:
    page = (RESULTS / "camvid.md").read_text(encoding="utf-8")
    return re.split(r"\n#+ ", page.partition(f"# {heading}\n")[2], maxsplit=1)[0]


@pytest.mark.parametrize("file", SECTIONS)
def test_tables_are_those_of_the_results_file(file: str) -> None:
    statistics = Statistics(read_results(RESULTS / file))
    given = {row["method"]: row for row in tables(markdown(statistics, statistics.lines()))}
    for heading in SECTIONS[file]:
        rows = tables(section(heading))
        assert rows, heading
        for row in rows:
            wanted = given[NAMES.get(file, {}).get(row["method"], row["method"])]
            columns = row.keys() & wanted.keys() - {"method"}
            assert len(columns) >= 4
            for column in columns:
                shown = "" if row[column] == "1" and column == "step time" else row[column]
                assert shown == wanted[column], (heading, row["method"], column)


@pytest.mark.parametrize("file", IN_README)
def test_a_row_of_the_readme_has_the_figures_of_the_results_file(file: str) -> None:
    cells = read_results(RESULTS / file).cells
    wanted = []
    for name in IN_README[file]:
        miou = [100 * cell.figures["miou"] for key, cell in cells.items() if key.row == name]
        wanted.append(f"{mean(miou):.1f} ± {stdev(miou):.1f}")
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| ")]
    assert any(all(figure in row for figure in wanted) for row in rows), wanted
