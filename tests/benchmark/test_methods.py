"""The benchmark of methods: order, reuse by settings, going on, decisions, tables without runs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL, write_folder
from scipy import stats
from tiny_runs import lines

from aicsd.benchmark import methods_decide, methods_run
from aicsd.benchmark.methods import Key, read_benchmark
from aicsd.benchmark.methods_measure import measure_weights, step_ratio
from aicsd.benchmark.methods_results import read_results
from aicsd.benchmark.methods_run import Campaign
from aicsd.benchmark.methods_table import Statistics
from aicsd.benchmark.statistics import miou, parts_of
from aicsd.config import build_config
from aicsd.engine.config import DistillConfig
from aicsd.engine.run import recipe_of
from aicsd.evaluation import ImageCounts
from aicsd.runs import RunFolder

CONFIGS = Path(__file__).parents[2] / "aicsd" / "configs"
RunCli = Callable[..., tuple[int, str, str]]
DATA = {"name": "folder", "batch_size": 4, "workers": 0, "augment": {"crop": 32}}
GAINS = {"none": 0.0, "kd": 0.02, "aicsd": 0.03, "icsd": -0.01}
RATES = {"none": 100.0, "kd": 80.0, "aicsd": 50.0, "icsd": 98.0}
"""Results of the fake trainings: points over the student alone, images per second."""


def write_file(folder: Path, **keys: Any) -> Path:
    """A benchmark of two rows on a dataset and a teacher that need not be there."""
    content = {
        "common": {"teacher": "teacher", "epochs": 10, "data": {**DATA, "root": "data"}},
        "students": {"small": TINY_MODEL},
        "methods": {"none": None, "kd": None},
        **keys,
    }
    path = folder / "benchmark.yaml"
    path.write_text(json.dumps(content))  # which is YAML, without aliases
    return path


def matrices(level: float, images: int = 6) -> np.ndarray:
    """Counts of images of which a share of ``level`` of the pixels is right."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(400, 1600, (images, 3))
    right = np.rint(level * sizes + rng.normal(0, 5, sizes.shape)).astype(int)
    found = np.zeros((images, 3, 3), int)
    for image in range(images):
        for label in range(3):
            found[image, label, label] = right[image, label]
            found[image, label, (label + 1) % 3] = sizes[image, label] - right[image, label]
    return found


class FakeTraining:
    """In the place of ``aicsd distill`` in a process: leaves a finished run at once."""

    started: list[Path]
    at_once: int
    broken: str

    def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
        words = dict(zip(command[4::2], command[5::2], strict=False))
        keys = yaml.safe_load(Path(words["--config"]).read_text())
        self.folder = RunFolder(words["--run"])
        type(self).started.append(self.folder.path)
        self.code: int | None = None
        if self.broken and self.folder.path.name.startswith(self.broken):
            stdout.write(b"step 3\naicsd: error: the disk is full\n")
            self.code = 2
            return
        config = build_config(DistillConfig, {**keys, "run": str(self.folder.path)})
        recipe = recipe_of(config)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.save_config(asdict(replace(config, terms=recipe.to_dict())))
        level = 0.5 + GAINS[config.method] + 0.004 * config.seed + 1e-4 * config.epochs
        level += 0.01 * (config.method == "kd" and recipe.terms["pixel_kd"].weight == 0.6)
        counts = ImageCounts([str(image) for image in range(6)], 3)
        for image, matrix in enumerate(matrices(level)):
            counts.add(image, torch.from_numpy(matrix))
        counts.save(self.folder.image_counts)
        score = float(miou(parts_of(matrices(level).sum(axis=0))))
        result = {
            "miou": score, "class_accuracy": level, "pixel_accuracy": level, "images": 6,
            "parameters": 1000, "per_class_iou": {"a": 0.1, "b": 0.2, "c": None}, "seconds": 9.0,
            "teacher": {"miou": 0.6} if recipe.needs_teacher else None,
        }  # fmt: skip
        self.folder.result.write_text(json.dumps(result))
        rates = [
            {"step": s, "loss": 1.0, "images_per_second": RATES[config.method]} for s in (1, 2)
        ]
        rates.append({"step": 3, "loss": 1.0, "images_per_second": 1e-3})  # it was interrupted
        self.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in rates))
        self.code = 0

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> type[FakeTraining]:
    FakeTraining.started, FakeTraining.broken = [], ""
    monkeypatch.setattr(methods_run, "Popen", FakeTraining)
    monkeypatch.setattr(methods_run, "POLL_SECONDS", 0.001)
    return FakeTraining


def run(place: Path, path: Path, run_cli: RunCli, *more: object) -> tuple[int, str, str]:
    folders = ("--runs", place / "runs", "--out", place / "out")
    return run_cli("benchmark", "methods", "--config", path, *folders, *more)


def names(trainings: type[FakeTraining]) -> list[str]:
    return [path.name for path in trainings.started]


def row_of(place: Path, name: str) -> dict[str, str]:
    text = (place / "out" / "table.csv").read_text()
    return next(row for row in csv.DictReader(io.StringIO(text)) if row["method"] == name)


# what is trained, and in which order


def test_baseline_and_main_rows_of_a_seed_go_before_other_rows(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(
        tmp_path,
        seeds=[0, 1],
        methods={"none": None, "icsd": None, "kd": None},
        main=["none", "kd"],
    )
    code, _, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    assert names(trainings) == [
        "small-none-0", "small-kd-0", "small-none-1", "small-icsd-0", "small-kd-1", "small-icsd-1",
    ]  # fmt: skip


def test_a_finished_cell_is_taken_by_its_settings_and_not_by_its_name(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path)
    assert run(tmp_path, path, run_cli)[0] == 0
    (tmp_path / "runs" / "small-kd-0").rename(tmp_path / "runs" / "elsewhere")
    renamed = {"none": None, "kd, as it is": {"method": "kd"}, "kd": {"optimizer": {"lr": 0.1}}}
    write_file(tmp_path, methods=renamed)
    (tmp_path / "out" / "results.json").unlink()
    trainings.started.clear()
    assert run(tmp_path, path, run_cli)[0] == 0
    assert names(trainings) == ["small-kd-0"]  # only the one with another learning rate
    results = read_results(tmp_path / "out" / "results.json")
    assert results.cells[Key("small", "kd, as it is", 0)].run == "elsewhere"
    assert results.cells[Key("small", "kd", 0)].identity["optimizer.lr"] == 0.1


def test_results_without_the_runs_are_enough(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path, seeds=[0, 1])
    code, table, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    shutil.rmtree(tmp_path / "runs")
    trainings.started.clear()
    assert run(tmp_path, path, run_cli)[1] == table
    (tmp_path / "out" / "table.md").unlink()
    code, again, _ = run_cli("benchmark", "methods", "--table", "--out", tmp_path / "out")
    assert (code, again) == (0, table)
    assert (tmp_path / "out" / "table.md").read_text() == table
    assert trainings.started == []
    # a row that the file has no longer keeps its result for later
    write_file(tmp_path, seeds=[0, 1], methods={"none": None})
    assert "kd" not in run(tmp_path, path, run_cli)[1]
    write_file(tmp_path, seeds=[0, 1])
    assert run(tmp_path, path, run_cli)[1] == table
    assert trainings.started == []


def test_a_teacher_counts_by_its_content(tmp_path: Path) -> None:
    for name, content in (("one", b"a"), ("moved", b"a"), ("other", b"b")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    path = write_file(tmp_path)
    one, moved, other = (
        read_benchmark(path, {"teacher": str(tmp_path / f"{name}.safetensors")})
        .cell(Key("small", "kd", 0)).identity for name in ("one", "moved", "other")
    )  # fmt: skip
    assert one == moved != other
    alone = read_benchmark(path, {"teacher": "nowhere"}).cell(Key("small", "none", 0))
    assert alone.config.teacher is None


def test_a_failure_is_told_and_the_others_go_on(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    trainings.broken = "small-kd"
    path = write_file(tmp_path, seeds=[0, 1])
    code, _, error = run(tmp_path, path, run_cli)
    assert code == 2
    assert "small kd, seed 0 failed: aicsd: error: the disk is full" in error
    assert error.splitlines()[-1].startswith("aicsd: error: 2 trainings failed")
    assert row_of(tmp_path, "none")["seeds"] == "0 1"
    trainings.broken = ""
    assert run(tmp_path, path, run_cli)[0] == 0
    assert row_of(tmp_path, "kd")["seeds"] == "0 1"


# decisions


def test_equal_time_trains_the_student_alone_for_as_long(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(
        tmp_path, methods=dict.fromkeys(["none", "aicsd", "icsd"]), equal_time=["aicsd", "icsd"]
    )
    code, text, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    results = read_results(tmp_path / "out" / "results.json")
    assert "small aicsd: step time is taken from the logs: " in error  # there are no images here
    # 100 / 50 images per second; 100 / 98 is within the noise of such times
    longer = results.cells[Key("small", "none, as long as aicsd", 0)]
    assert longer.figures["epochs"] == 20
    assert results.cells[Key("small", "none, as long as icsd", 0)].run == "small-none-0"
    assert len(names(trainings)) == 4
    cells = {row: results.cells[Key("small", row, 0)].figures["miou"] for row in ("none", "aicsd")}
    row = row_of(tmp_path, "aicsd")
    assert float(row["gain"]) == pytest.approx(cells["aicsd"] - cells["none"])
    assert float(row["equal_time_gain"]) == pytest.approx(cells["aicsd"] - longer.figures["miou"])
    assert float(row["step_time"]) == pytest.approx(2.0)
    trainings.started.clear()
    assert run(tmp_path, path, run_cli)[1] == text
    assert trainings.started == []


def test_a_search_takes_the_best_of_short_trainings(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_decide, "measure_weights", lambda _: {"pixel_kd": 2.0})
    path = write_file(tmp_path, methods={"none": None, "kd": {"search": True}})
    code, text, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    assert names(trainings) == [
        "small-none-0", "small-kd-weights-x-0.3-0", "small-kd-weights-x-1-0",
        "small-kd-weights-x-3-0", "small-kd-0",
    ]  # fmt: skip
    results = read_results(tmp_path / "out" / "results.json")
    chosen = results.cells[Key("small", "kd", 0)].figures
    assert chosen["weights"]["pixel_kd"] == 0.6
    assert chosen["epochs"] == 10
    trial = results.cells[Key("small", "kd, weights x 3", 0)].figures
    assert (trial["weights"]["pixel_kd"], trial["epochs"]) == (6.0, 1)
    assert "| small | kd, weights x 0.3 | cross_entropy 1, pixel_kd 0.6 |" in text


def test_a_training_with_workers_does_not_wait_for_its_standard_input() -> None:
    # a forked process closes its standard input, on which a thread of the training waits
    program = f"""{methods_run.WATCH_PARENT}
import multiprocessing, time
time.sleep(0.5)
process = multiprocessing.get_context("fork").Process(target=print)
process.start()
process.join(20)
stuck = process.is_alive()
process.kill()
sys.exit(stuck)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as training:
        assert training.wait(60) == 0


def test_matched_steps_and_labelled_views(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    root = write_folder(tmp_path / "data", {"train": 24, "val": 2})
    partly = {"method": "kd", "data": {"unlabelled_rest": True}}
    methods = {
        "none": None,
        "steps": {**partly, "match": {"steps": "none"}},
        "views": {**partly, "match": {"labelled_views": "none"}},
    }
    common = {"teacher": "t", "epochs": 30, "data": {**DATA, "train_images": 8}}
    path = write_file(tmp_path, common=common, methods=methods)
    code, _, error = run(tmp_path, path, run_cli, "--root", root)
    assert code == 0, error
    results = read_results(tmp_path / "out" / "results.json")
    # alone: 2 steps an epoch, 8 of 8 images labelled; with the rest: 6 steps, 8 of 24
    assert results.cells[Key("small", "steps", 0)].figures["epochs"] == 10
    assert results.cells[Key("small", "views", 0)].figures["epochs"] == 30


def test_weights_with_which_terms_pull_as_hard_as_the_labels(runs: Path) -> None:
    common = {"teacher": str(runs / "teacher"), "data": {"root": str(runs / "data")}}
    path = write_file(runs, methods=dict.fromkeys(["none", "aicsd", "label_soft"]))
    benchmark = read_benchmark(path, common)
    for row, terms in (("aicsd", {"icsd", "pixel_kd"}), ("label_soft", {"label_soft"})):
        weights = measure_weights(benchmark.cell(Key("small", row, 0)))
        assert weights.keys() == terms
        assert all(weight > 0 for weight in weights.values())


def test_time_of_a_step_beside_that_of_another(runs: Path) -> None:
    common = {"teacher": str(runs / "teacher"), "data": {"root": str(runs / "data")}}
    methods = {"none": None, "kd": {"optimizer": {"accumulate": 4}}}
    benchmark = read_benchmark(write_file(runs, methods=methods), common)
    alone, kd = (benchmark.cell(Key("small", row, 0)) for row in ("none", "kd"))
    assert step_ratio(kd, alone) > 2  # four batches a step, and a teacher


# tables


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
        ({"seeds": 3}, ["seeds is 3"]),
        ({"search": {"share": 2}}, ["search is {'share': 2}"]),
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


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("methods.yaml")), ids=lambda p: p.parent.name)
def test_a_benchmark_of_the_project_can_be_read(path: Path) -> None:
    benchmark = read_benchmark(path, {"teacher": "t"}, "weights.safetensors")
    assert len(benchmark.order()) >= 12
    (student,) = {benchmark.cell(key).config.student.weights for key in benchmark.order()}
    assert student == "weights.safetensors"


# real trainings


def test_a_training_ends_with_the_process_that_started_it() -> None:
    program = f"{methods_run.WATCH_PARENT}print('ready', flush=True)\nimport time\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == -signal.SIGTERM
    process.stdout.close()


def test_stopped_in_the_middle_it_goes_on(runs: Path, tmp_path: Path) -> None:
    """A run that was made by hand is taken; one that is cut goes on from its checkpoint."""
    common = {
        "teacher": str(runs / "teacher"), "epochs": 2, "save_every": 1, "log_every": 1,
        "accelerator": "cpu", "logger": "none", "val_every": 0,
        "data": {**DATA, "root": str(runs / "data")},
    }  # fmt: skip
    methods = {"none": None, "kd": {"epochs": 30}}
    path = write_file(tmp_path, common=common, methods=methods)
    folder = tmp_path / "runs"
    shutil.copytree(runs / "alone", folder / "by hand")

    def stop_it() -> None:
        checkpoint = RunFolder(folder / "small-kd-0").checkpoint
        while not checkpoint.is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    results = read_results(tmp_path / "out" / "results.json")
    watcher = threading.Thread(target=stop_it, daemon=True)
    watcher.start()
    outcome = Campaign(read_benchmark(path), folder, results).run(jobs=2)
    watcher.join(1)
    assert outcome.stopped
    assert not outcome.failed
    assert outcome.waiting == [Key("small", "kd", 0)]
    alone = results.cells[Key("small", "none", 0)]
    assert alone.run == "by hand"
    assert alone.parts is not None
    assert miou(alone.parts.sum(axis=0)) == pytest.approx(alone.figures["miou"], abs=1e-12)
    stopped_at = lines(folder / "small-kd-0")[-1]["step"]
    assert 0 < stopped_at < 60

    results = read_results(tmp_path / "out" / "results.json")
    outcome = Campaign(read_benchmark(path), folder, results).run(jobs=2)
    assert (outcome.failed, outcome.waiting, outcome.stopped) == ({}, [], False)
    steps = [line["step"] for line in lines(folder / "small-kd-0") if "loss" in line]
    assert steps == list(range(1, 61))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "by hand", "small-kd-0",
    ]  # fmt: skip
