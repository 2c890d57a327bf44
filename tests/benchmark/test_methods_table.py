"""Tables of the benchmark of methods, and files and options that make none."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import RunCli
from fake_trainings import (
    DATA,
    GAINS,
    FakeTraining,
    fake_trainings,
    matrices,
    row_of,
    run,
    write_file,
)
from scipy import stats

from aicsd.benchmark import methods_decide
from aicsd.benchmark.methods import Key
from aicsd.benchmark.methods_file import read_benchmark
from aicsd.benchmark.methods_render import gain_figure, latex
from aicsd.benchmark.methods_results import read_results
from aicsd.benchmark.methods_table import Line, Statistics
from aicsd.benchmark.statistics import Gain, miou, parts_of
from aicsd.methods import load_recipe


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> type[FakeTraining]:
    return fake_trainings(monkeypatch)


CONFIGS = Path(__file__).parents[2] / "aicsd" / "configs"


def test_table_by_hand(tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]) -> None:
    path = write_file(tmp_path, seeds=[0, 1, 2])
    code, text, _ = run(tmp_path, path, run_cli)
    assert code == 0
    alone, kd = (
        [
            float(miou(parts_of(matrices(0.501 + gain + 0.004 * seed).sum(axis=0))))
            for seed in range(3)
        ]
        for gain in (0.0, GAINS["kd"])
    )
    row = row_of(tmp_path, "kd")
    differences = np.subtract(kd, alone)
    assert float(row["miou"]) == pytest.approx(mean(kd))
    assert float(row["gain"]) == pytest.approx(differences.mean())
    # images agree nearly, so that little but the seeds makes the interval
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert float(row["gain_low"]) == pytest.approx(expected.low, abs=1e-3)
    assert float(row["gain_high"]) == pytest.approx(expected.high, abs=1e-3)
    assert row["gain_clear"] == "True"
    headroom = 0.6 - mean(alone)
    assert float(row["recovered"]) == pytest.approx(differences.mean() / headroom)
    assert float(row["step_time"]) == pytest.approx(100 / 80)
    shown = next(line for line in text.splitlines() if "| kd |" in line)
    assert f"| {100 * differences.mean():+.2f} [" in shown
    assert "°" not in shown
    assert "the interval is over seeds and images" in text
    # scores of one teacher that differ in the last digits are one
    assert "small: the teacher has 60.00 %, a headroom of " in text
    tex = (tmp_path / "out" / "table.tex").read_text()
    assert tex.count(r"\\") == 3
    assert r"$\pm$" in tex
    assert (tmp_path / "out" / "gain.png").stat().st_size > 1000
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content[1]["gain"]["values"] == pytest.approx(differences.tolist())


def test_noise_is_marked(tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]) -> None:
    path = write_file(tmp_path)
    text = run(tmp_path, path, run_cli)[1]
    assert "(one seed)°" in text
    results = read_results(tmp_path / "out" / "results.json")
    cell = results.cells[Key("small", "kd", 0)]
    for seed, gain in ((1, 0.05), (2, -0.04)):
        for row, level in (("none", 0.0), ("kd", gain)):
            figures = {**cell.figures, "miou": 0.4 + level}
            results.cells[Key("small", row, seed)] = replace(cell, figures=figures, parts=None)
    results.shown["seeds"] = [0, 1, 2]
    line = Statistics(results).lines()[1]
    assert line.gain is not None
    assert not line.gain.is_clear
    assert not line.gain.over_images
    assert len(line.gain.values) == 3
    results.save()
    text = run_cli("benchmark", "methods", "--table", "--out", tmp_path / "out")[1]
    shown = next(row for row in text.splitlines() if "| kd |" in row)
    assert "]° |" in shown
    tex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\textcolor{gray}{" in tex


def test_cells_of_other_masks_do_not_compare(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path, methods={"none": None})
    assert run(tmp_path, path, run_cli)[0] == 0
    write_file(tmp_path)
    trainings.unlabelled = True
    code, _, error = run(tmp_path, path, run_cli)
    assert (code, "the masks of the validation images have changed" in error) == (2, True)


def test_no_label_to_measure_by(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_decide, "measure_weights", lambda _: {"pixel_kd": 2.0})
    trainings.unlabelled = True
    rows: dict[str, Any] = {"none": None, "kd": None, "searched": {"method": "kd", "search": True}}
    path = write_file(tmp_path, seeds=[0, 1], methods=rows, equal_time=["kd"])
    code, text, error = run(tmp_path, path, run_cli)
    assert code == 2
    assert "small searched, seed 1 failed: methods.searched: search compares short" in error
    assert "small-none-0: val mIoU - (no pixel with a label)" in error
    shown = next(line for line in text.splitlines() if "| kd |" in line)
    assert "| kd | 2 | 10 | - |  |  |  | 1.25 |" in shown
    assert "No pixel of these images has a label, so there is no mIoU." in text
    assert row_of(tmp_path, "kd")["miou"] == ""
    again = run_cli("benchmark", "methods", "--table", "--out", tmp_path / "out")
    assert again[:2] == (0, text)


def test_a_teacher_behind_the_student_alone(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    trainings.teacher, trainings.broken = 0.2, "small-none"
    path = write_file(tmp_path)
    code, text, _ = run(tmp_path, path, run_cli)
    assert (code, "headroom of" in text.partition("Measured")[2]) == (2, False)  # over what?
    assert "Without a result: small none (seed 0)." in text
    trainings.broken = ""
    code, text, _ = run(tmp_path, path, run_cli)
    assert (code, "Without a result" in text) == (0, False)
    assert "small: the teacher has 20.00 %, no headroom, for it is " in text
    assert row_of(tmp_path, "kd")["recovered"] == ""
    config = yaml.safe_load((tmp_path / "runs" / "small-kd-0" / "config.yaml").read_text())
    assert (config["in_benchmark"], config["force_teacher"]) == (True, False)


def test_each_row_has_the_headroom_of_its_own_teacher(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    methods = {"none": None, "kd": None, "better": {"method": "kd"}}
    assert run(tmp_path, write_file(tmp_path, methods=methods), run_cli)[0] == 0
    results = read_results(tmp_path / "out" / "results.json")
    for row, score in (("kd", 0.6), ("better", 0.8)):
        cell = results.cells[Key("small", row, 0)]
        figures = {**cell.figures, "miou": 0.55, "teacher_miou": score}
        results.cells[Key("small", row, 0)] = replace(cell, figures=figures, parts=None)
    alone = results.cells[Key("small", "none", 0)]
    results.cells[Key("small", "none", 0)] = replace(
        alone, figures={**alone.figures, "miou": 0.5}, parts=None
    )
    recovered = {line.row: line.recovered for line in Statistics(results).lines()}
    assert recovered["kd"] == pytest.approx(0.05 / 0.1)
    assert recovered["better"] == pytest.approx(0.05 / 0.3)


def test_cells_of_other_images_do_not_compare(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    methods = {"none": None, "kd": {"data": {"val_split": "test"}}}
    code, _, error = run(tmp_path, write_file(tmp_path, methods=methods), run_cli)
    assert code == 2
    assert "they do not compare" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"metods": {}}, ["unknown key 'metods'", "'methods'"]),
        ({"methods": {"none": {"epoch": 3}}}, ["methods.none", "'epoch'", "'epochs'"]),
        ({"methods": {"none": None, "kdd": None}}, ["methods.kdd", "unknown method 'kdd'"]),
        ({"methods": {"kd": None}}, ["baseline: there is no row 'none'"]),
        ({"equal_time": ["kdd"]}, ["equal_time: there is no row 'kdd'; did you mean 'kd'"]),
        ({"methods": {"none": None, "kd": {"match": {"stps": "none"}}}}, ["steps or labelled"]),
        ({"methods": {"none": None, "kd": {"match": {"steps": "x"}}}}, ["no row 'x'"]),
        (
            {"methods": {"none": {"match": {"steps": "kd"}}, "kd": {"match": {"steps": "none"}}}},
            ["methods.none: match goes round in a circle: none -> kd -> none"],
        ),
        (
            {"methods": {"none": None, "kd": {"match": {"steps": "kd"}}}, "equal_time": ["kd"]},
            ["methods.kd: match goes round in a circle: kd -> kd"],
        ),
        ({"seeds": 3}, ["seeds is 3"]),
        ({"search": {"share": 2}}, ["search is {'share': 2}"]),
        ({"search": {"share": "half"}}, ["search is {'share': 'half'}"]),
        ({"search": {"factors": 3}}, ["search is {'factors': 3}", "a list of numbers"]),
        ({"search": {"factors": ["x"]}}, ["search is {'factors': ['x']}"]),
        ({"search": 3}, ["search is 3"]),
        (
            {"methods": {"none": None, "kd": {"search": {"factors": [1]}}}},
            ["methods.kd: search is {'factors': [1]}", "true or false", "beside methods"],
        ),
        ({"equal_time": "kd"}, ["equal_time is 'kd'; it must be a list"]),
        ({"main": None}, ["main is None; it must be a list"]),
        ({"students": {"small": "tiny"}}, ["students.small is 'tiny'"]),
        ({"students": {"small": {"backbon": "x"}}}, ["backbon"]),
        ({"common": {"data": DATA}}, ["methods.kd: it needs a teacher"]),
        (
            {"methods": {"none": None, "ad": {"teacher_cache": "cache"}}},
            ["methods.ad: teacher_cache holds logits", "leave teacher_cache out"],
        ),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, run_cli: RunCli, keys: dict[str, Any], words: list[str]
) -> None:
    code, output, error = run(tmp_path, write_file(tmp_path, **keys), run_cli)
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    for word in ("benchmark.yaml", *words):
        assert word in error


def test_options_out_of_range(tmp_path: Path, run_cli: RunCli) -> None:
    path = write_file(tmp_path)
    for more, word in ((("--jobs", "0"), "jobs is 0"), (("--minutes", "-1"), "minutes is -1")):
        code, _, error = run(tmp_path, path, run_cli, *more)
        assert code == 2
        assert word in error
    code, _, error = run_cli("benchmark", "methods", "--table", "--out", tmp_path / "no")
    assert code == 2
    assert "there are no results" in error
    assert "missing: config" in run_cli("benchmark", "methods")[2]


def test_names_are_text_in_latex() -> None:
    line = Line("a_b", r"T^2 {x} $1 \y ~", [0], [0.5, 0.6], [0.5], 3, 1000, None, None, None, None)
    row = latex([line]).splitlines()[4]
    assert row.startswith(
        r"a\_b & T\textasciicircum{}2 \{x\} \$1 \textbackslash{}y \textasciitilde{} & 1 & 3 & "
        r"55.00 $\pm$ 7.07 & "
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("methods.yaml")), ids=lambda p: p.parent.name)
def test_a_benchmark_of_the_project_can_be_read(path: Path) -> None:
    benchmark = read_benchmark(path, {"teacher": "t"}, "weights.safetensors")
    assert len(benchmark.order()) >= 12
    (student,) = {benchmark.cell(key).config.student.weights for key in benchmark.order()}
    assert student == "weights.safetensors"


def test_the_recipe_strong_is_the_row_that_was_measured() -> None:
    short = CONFIGS / "camvid" / "short.yaml"
    benchmark = read_benchmark(short, {"teacher": "t"}, "weights.safetensors")
    row = benchmark.cell(Key("mobilenetv2_050", "dist + feature_kd", 0))
    assert row.recipe.to_dict() == load_recipe("strong").to_dict()


def test_names_in_the_plot_cover_no_other_name() -> None:
    costs = [1.0, 1.0, 1.01, 1.01, 1.02, 1.5]
    gains = [0.01, 0.011, 0.01, 0.012, 0.03, 0.02]
    lines = [
        Line(
            "student",
            f"a method {number}",
            [0],
            [0.5],
            [0.5],
            3,
            1000,
            Gain("none", [gain], None, over_images=False),
            None,
            None,
            cost,
        )
        for number, (cost, gain) in enumerate(zip(costs, gains, strict=True))
    ]
    figure = gain_figure(lines)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
