"""The benchmark of methods: order, reuse by settings, going on, decisions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import RunCli, write_folder
from fake_trainings import (
    DATA,
    FakeTraining,
    ForkedTraining,
    fake_trainings,
    names,
    row_of,
    run,
    write_file,
)
from tiny_runs import lines

from aicsd.benchmark import methods_decide, methods_render, methods_run
from aicsd.benchmark.methods import Key
from aicsd.benchmark.methods_file import read_benchmark
from aicsd.benchmark.methods_measure import measure_weights, step_ratio
from aicsd.benchmark.methods_results import read_results
from aicsd.benchmark.methods_run import Campaign
from aicsd.benchmark.statistics import miou
from aicsd.engine.finite import NonFiniteLossError
from aicsd.runs import RunFolder


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> type[FakeTraining]:
    # tests/benchmark/test_methods_table.py draws it
    monkeypatch.setattr(methods_render, "plot", lambda *_: None)
    return fake_trainings(monkeypatch)


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
        "small-none-0",
        "small-kd-0",
        "small-none-1",
        "small-icsd-0",
        "small-kd-1",
        "small-icsd-1",
    ]


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
        .cell(Key("small", "kd", 0))
        .identity
        for name in ("one", "moved", "other")
    )
    assert one == moved != other
    alone = read_benchmark(path, {"teacher": "nowhere"}).cell(Key("small", "none", 0))
    assert alone.config.teacher is None


@pytest.mark.parametrize("name", ["folder", "shards", "photos"])
def test_data_of_ones_own_count_by_their_place(tmp_path: Path, name: str) -> None:
    """Else a run on other images would be taken for a finished one."""
    path, key = write_file(tmp_path), Key("small", "kd", 0)
    here, same, other = (
        read_benchmark(path, {"data": {"name": name, "root": root}}).cell(key).identity
        for root in ("mine", "mine/", "yours")
    )
    assert here == same != other


def test_a_map_of_classes_counts_by_its_content(tmp_path: Path) -> None:
    path, classes, key = write_file(tmp_path), tmp_path / "map.yaml", Key("small", "kd", 0)
    found = []
    for content in ("a: b", "a: c c"):
        classes.write_text(content)
        cell = read_benchmark(path, {"teacher_classes": str(classes)}).cell(key)
        found.append(cell.identity)
    assert found[0] != found[1]


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


def test_every_training_starts_before_step_times_are_measured(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    started_before = []

    def measured(*_: object) -> float:
        started_before.append(len(trainings.started))
        return 2.0

    monkeypatch.setattr(methods_decide, "step_ratio", measured)
    path = write_file(tmp_path, methods=dict.fromkeys(["none", "kd", "icsd"]), seeds=[0, 1])
    code, _, error = run(tmp_path, path, run_cli, "--jobs", 2)
    assert code == 0, error
    assert started_before == [6, 6]


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


def test_a_loss_that_is_not_finite_while_steps_are_timed(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> float:
        raise NonFiniteLossError(3, 0)

    monkeypatch.setattr(methods_decide, "step_ratio", diverge)
    path = write_file(tmp_path, methods=dict.fromkeys(["none", "aicsd"]))
    code, _, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    assert "small aicsd: step time is taken from the logs: step 3, process 0" in error
    assert float(row_of(tmp_path, "aicsd")["step_time"]) == pytest.approx(2.0)


def test_a_search_takes_the_best_of_short_trainings(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_decide, "measure_weights", lambda _: {"pixel_kd": 2.0})
    path = write_file(tmp_path, methods={"none": None, "kd": {"search": True}})
    code, text, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    assert names(trainings) == [
        "small-none-0",
        "small-kd-weights-x-0.3-0",
        "small-kd-weights-x-1-0",
        "small-kd-weights-x-3-0",
        "small-kd-0",
    ]
    results = read_results(tmp_path / "out" / "results.json")
    chosen = results.cells[Key("small", "kd", 0)].figures
    assert chosen["weights"]["pixel_kd"] == 0.6
    assert chosen["epochs"] == 10
    trial = results.cells[Key("small", "kd, weights x 3", 0)].figures
    assert (trial["weights"]["pixel_kd"], trial["epochs"]) == (6.0, 1)
    assert "| small | kd, weights x 0.3 | cross_entropy 1, pixel_kd 0.6 |" in text


def test_a_single_factor_decides_without_a_short_training(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_decide, "measure_weights", lambda _: {"pixel_kd": 2.0})
    methods = {"none": None, "kd": {"search": True}}
    path = write_file(tmp_path, methods=methods, search={"factors": [3.0]})
    code, _, error = run(tmp_path, path, run_cli)
    assert code == 0, error
    assert names(trainings) == ["small-none-0", "small-kd-0"]
    results = read_results(tmp_path / "out" / "results.json")
    assert results.cells[Key("small", "kd", 0)].figures["weights"]["pixel_kd"] == 6.0


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


# real trainings


def test_a_training_ends_with_the_process_that_started_it() -> None:
    program = f"{methods_run.WATCH_PARENT}print('ready', flush=True)\nimport time\ntime.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == -signal.SIGTERM
    process.stdout.close()


def test_the_program_of_a_training_is_the_command_line() -> None:
    words = [sys.executable, "-c", methods_run.RUN_AICSD, "--version"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"aicsd ")


def test_stopped_in_the_middle_it_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was made by hand is taken; one that is cut goes on from its checkpoint."""
    monkeypatch.setattr(methods_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(methods_run, "Popen", ForkedTraining)
    common = {
        "teacher": str(runs / "teacher"),
        "epochs": 2,
        "save_every": 1,
        "log_every": 1,
        "accelerator": "cpu",
        "logger": "none",
        "val_every": 0,
        "report_images": 0,
        "data": {**DATA, "root": str(runs / "data")},
    }
    methods = {"none": None, "kd": {"epochs": 16}}
    path = write_file(tmp_path, common=common, methods=methods)
    folder = tmp_path / "runs"
    shutil.copytree(runs / "alone", folder / "by hand")

    def stop_it() -> None:
        checkpoint = RunFolder(folder / "small-kd-0").checkpoint
        while not checkpoint.is_file():
            time.sleep(0.01)
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
    assert 0 < stopped_at < 32

    results = read_results(tmp_path / "out" / "results.json")
    outcome = Campaign(read_benchmark(path), folder, results).run(jobs=2)
    assert (outcome.failed, outcome.waiting, outcome.stopped) == ({}, [], False)
    steps = [line["step"] for line in lines(folder / "small-kd-0") if "loss" in line]
    assert steps == list(range(1, 33))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "by hand",
        "small-kd-0",
    ]
