"""The tables of docs/results are those that the results files beside them give."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from aicsd.benchmark.methods_render import markdown
from aicsd.benchmark.methods_results import read_results
from aicsd.benchmark.methods_table import Statistics

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "docs" / "results"
SECTIONS = {
    "camvid-cpu/longest.json": ("The longest training, 120 epochs",),
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
    "camvid-cpu/longest.json": ("none", "dist"),
    "camvid-cpu/long.json": ("none", "dist", "aicsd"),
    "camvid-cpu/few.json": ("none", "dist and photos", "aicsd and photos"),
    "camvid-cpu/methods.json": ("none", "dist", STRONG, "aicsd"),
    "facade-cpu/methods.json": ("none", "kd and photos", "aicsd and photos"),
}
BY_CLASS = {
    "The longest training, 120 epochs": "dist",
    "With a teacher that stays ahead, 40 epochs": "dist",
    "Few labels": "dist and photos",
}
"""Sections that name classes as `Car (76.6 to 80.4`: the student alone, and the row given here."""
CARDS = {
    "camvid_mobilenetv2_050_alone": ("camvid-h200/methods.json", "none"),
    "camvid_mobilenetv2_050_dist": ("camvid-cpu/longest.json", "dist"),
    "facade_mobilenetv2_050_alone": ("facade-cpu/methods.json", "none"),
    "facade_mobilenetv2_050_photos": ("facade-cpu/methods.json", "kd and photos"),
}
"""Networks of the zoo, all of seed 0, and the row of a results file that each card repeats."""
HALF_PRECISION = 0.1
"""Points by which figures of a card may differ: they are those of the file, in half precision."""


def tables(text: str) -> list[dict[str, str]]:
    """Rows of all tables of a Markdown text; cells by the names of their columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.replace("`", "").replace("\N{MINUS SIGN}", "-").splitlines()
        head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
        found += [dict(zip(head, cells, strict=True)) for cells in body]
    return found


def figures(file: str, row: str) -> dict[int, dict[str, Any]]:
    """Figures of the finished trainings of a row, by seed."""
    cells = read_results(RESULTS / file).cells
    return {key.seed: cell.figures for key, cell in cells.items() if key.row == row}


def mean_and_deviation(file: str, row: str) -> str:
    miou = [100 * run["miou"] for run in figures(file, row).values()]
    return f"{mean(miou):.1f} ± {stdev(miou):.1f}"


def mean_iou(file: str, row: str, name: str) -> str:
    """Mean IoU of a class over the seeds of a row, in % with one digit."""
    return f"{100 * mean(run['per_class_iou'][name] for run in figures(file, row).values()):.1f}"


def values_of(card: list[dict[str, str]], column: str) -> dict[str, float]:
    """Figures of a card of the zoo by their names, of which a row may hold several."""
    found: dict[str, float] = {}
    for row in card:
        names = next(iter(row.values())).removeprefix("IoU: ").split(", ")
        found |= zip(names, map(float, row[column].split(", ")), strict=True)
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
    wanted = [mean_and_deviation(file, name) for name in IN_README[file]]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| ")]
    assert any(all(figure in row for figure in wanted) for row in rows), wanted


@pytest.mark.parametrize("heading", BY_CLASS)
def test_classes_of_a_section_have_the_figures_of_the_results_file(heading: str) -> None:
    file = next(file for file, headings in SECTIONS.items() if heading in headings)
    text = " ".join(section(heading).split())
    rows = ("none", BY_CLASS[heading])
    classes = "|".join(figures(file, "none")[0]["per_class_iou"])
    named = re.findall(rf"({classes})[^(.]* \(([\d.]+) to ([\d.]+)", text)
    assert len(named) >= 3
    for name, *shown in named:
        assert shown == [mean_iou(file, row, name) for row in rows], (heading, name)


def test_points_of_the_page_have_the_figures_of_the_results_files() -> None:
    page = (RESULTS / "camvid.md").read_text(encoding="utf-8")
    points = " ".join(page.partition("\nCamVid in the SegNet layout")[0].split())
    shown = re.findall(r"[\d.]+ ± [\d.]+", points)
    assert len(shown) >= 6
    rows = {(file, row) for file, names in IN_README.items() for row in names}
    assert set(shown) <= {mean_and_deviation(file, row) for file, row in rows}


def test_validation_figures_beside_those_of_training_images_are_of_seed_0() -> None:
    files = {"12": "methods", "40": "long", "120": "longest"}
    rows = tables(section("Why the gain shrinks"))
    assert [row["epochs"] for row in rows] == list(files)
    for row in rows:
        for column, name in (("alone", "none"), ("dist", "dist")):
            run = figures(f"camvid-cpu/{files[row['epochs']]}.json", name)[0]
            assert row[column] == f"{100 * run['miou']:.1f}", (row["epochs"], column)
            teacher = run["teacher_miou"]
            assert teacher is None or row["teacher"] == f"{100 * teacher:.1f}"


def test_table_of_labelmefacade_has_the_figures_of_the_results_file() -> None:
    file = "facade-cpu/methods.json"
    page = (RESULTS / "facade.md").read_text(encoding="utf-8")
    rows = {row["student"]: row for row in tables(page)}
    for student, name in (("alone", "none"), *((row, row) for row in IN_README[file][1:])):
        row = rows[student]
        assert row["seeds"] == str(len(figures(file, name)))
        assert row["val mIoU %"] == mean_and_deviation(file, name)
        for label in figures(file, name)[0]["per_class_iou"]:
            assert row[label] == mean_iou(file, name, label), (student, label)


@pytest.mark.parametrize("network", CARDS)
def test_card_of_the_zoo_has_the_figures_of_the_results_file(network: str) -> None:
    file, row = CARDS[network]
    card = tables((REPOSITORY / "zoo" / f"{network}.md").read_text(encoding="utf-8"))
    rows = {"%": row, "alone, as many epochs": "none"}
    for column in list(card[0])[1:]:
        run = figures(file, rows[column])[0]
        totals = [100 * run[key] for key in ("miou", "class_accuracy", "pixel_accuracy")]
        wanted = dict(zip(("mIoU", "class accuracy", "pixel accuracy"), totals, strict=True))
        wanted |= {name: 100 * iou for name, iou in run["per_class_iou"].items()}
        assert values_of(card, column) == pytest.approx(wanted, abs=HALF_PRECISION), column
    zoo = tables((REPOSITORY / "zoo" / "README.md").read_text(encoding="utf-8"))
    line = next(row for row in zoo if f"({network}.md)" in row["file"])
    assert float(line["val mIoU %"].split()[0]) == values_of(card, "%")["mIoU"]


def test_every_network_of_the_zoo_is_compared() -> None:
    assert CARDS.keys() == {path.stem for path in (REPOSITORY / "zoo").glob("*.safetensors")}
