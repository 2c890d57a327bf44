"""A benchmark of methods that goes on: with other options, and from files of other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from fake_trainings import FakeTraining, fake_trainings, names, row_of, run, write_file

from aicsd.benchmark import methods_decide, methods_render
from aicsd.benchmark.methods import Cell, Key
from aicsd.benchmark.methods_results import read_results
from aicsd.errors import UserError


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> type[FakeTraining]:
    # tests/benchmark/test_methods_table.py draws it
    monkeypatch.setattr(methods_render, "plot", lambda *_: None)
    return fake_trainings(monkeypatch)


def test_step_times_are_measured_once_where_the_baseline_has_no_result(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def fail(cell: Cell, _: Cell) -> float:
        measured.append(cell.key.row)
        raise UserError("no data")

    monkeypatch.setattr(methods_decide, "step_ratio", fail)
    trainings.broken = "small-none"
    path = write_file(tmp_path, methods=dict.fromkeys(["kd", "icsd", "none"]), seeds=[0, 1, 2])
    assert run(tmp_path, path, run_cli)[0] == 2
    assert sorted(measured) == ["icsd", "kd"]
    trainings.broken = ""
    assert run(tmp_path, path, run_cli)[0] == 0
    assert float(row_of(tmp_path, "kd")["step_time"]) == pytest.approx(100 / 80)


def test_what_was_decided_for_other_options_is_decided_anew(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    keys: dict[str, Any] = {"methods": dict.fromkeys(["none", "aicsd"]), "equal_time": ["aicsd"]}
    path = write_file(tmp_path, **keys)
    for epochs in (None, 30, 10):
        more = () if epochs is None else ("--common", f"{{epochs: {epochs}}}")
        assert run(tmp_path, path, run_cli, *more)[0] == 0
        results = read_results(tmp_path / "out" / "results.json")
        longer = results.cells[Key("small", "none, as long as aicsd", 0)]
        assert longer.figures["epochs"] == 2 * (epochs or 10)
    assert len(trainings.started) == 6


def test_results_of_a_version_with_fewer_settings_are_taken(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path)
    code, table, _ = run(tmp_path, path, run_cli)
    assert code == 0
    file = tmp_path / "out" / "results.json"
    content = json.loads(file.read_text())
    for key in ("optimizer.ema", "sync_bn", "data.augment.flip"):
        del content["settings"][key]
    del content["decided_for"]
    for cell in content["cells"]:
        assert cell["settings"].pop("terms.pixel_kd.standardize", None) in (None, False)
        del cell["labels"]
    file.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "runs")
    trainings.started.clear()
    assert run(tmp_path, path, run_cli)[:2] == (0, table)
    assert trainings.started == []


def test_a_run_that_went_on_with_other_settings_is_no_cell(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path)
    assert run(tmp_path, path, run_cli)[0] == 0
    folder = tmp_path / "runs" / "small-kd-0"
    (folder / "inputs.json").write_text('{"resumed_from": {"epochs": "5"}}')
    shutil.rmtree(tmp_path / "out")
    trainings.started.clear()
    assert run(tmp_path, path, run_cli)[0] == 0
    assert names(trainings) == ["small-kd-0-2"]


def test_a_run_that_cannot_go_on_with_new_settings_is_begun_again(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path)
    assert run(tmp_path, path, run_cli)[0] == 0
    for name in ("small-kd-0", "small-none-0"):
        (tmp_path / "runs" / name / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "out")
    trainings.started.clear()
    write_file(tmp_path, methods={"none": None, "kd": {"val_every": 5}})
    assert run(tmp_path, path, run_cli)[0] == 0
    assert names(trainings) == ["small-none-0", "small-kd-0-2"]


def test_two_benchmarks_of_one_folder_do_not_mix(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one writes the config of a training between the start of the first and its read."""
    path = write_file(tmp_path, methods={"none": None, "kd": None})
    begin = FakeTraining.__init__

    def late(self: FakeTraining, command: list[str], *more: Any, **options: Any) -> None:
        config = Path(command[command.index("--config") + 1])
        if config.name == "small-kd-0.yaml":
            config.write_text(config.read_text().replace("epochs: 10", "epochs: 99"))
        assert (tmp_path / "runs" / config.stem).is_dir()  # the name is taken
        begin(self, command, *more, **options)

    monkeypatch.setattr(FakeTraining, "__init__", late)
    code, text, error = run(tmp_path, path, run_cli)
    assert code == 2
    assert "small-kd-0 has settings of another training" in error
    assert "| kd |" not in text


def test_a_run_that_became_longer_is_not_of_the_group(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path, methods={"none": None, "kd": None}, seeds=[0, 1, 2])
    assert run(tmp_path, path, run_cli)[0] == 0
    for seed, changed in ((1, '{"epochs": "5"}'), (2, '{"optimizer.lr": "0.1"}')):
        file = tmp_path / "runs" / f"small-kd-{seed}" / "inputs.json"
        file.write_text(f'{{"resumed_from": {changed}}}')
    folders = list((tmp_path / "runs").iterdir())  # and the configs and logs beside them
    assert len(folders) > 6
    code, text, error = run_cli("benchmark", "table", *folders, "--format", "json")
    assert code == 0, error
    found = {
        (group["method"], group["epochs"], group["settings"].get("resumed_from.optimizer.lr")): (
            group["seeds"],
            (group["miou_difference"] or {}).get("n"),
        )
        for group in json.loads(text)["groups"]
    }
    assert found == {
        ("none", "10", None): ([0, 1, 2], None),
        ("kd", "10", None): ([0], 1),
        ("kd", "10 (resumed from 5)", None): ([1], None),
        ("kd", "10", "0.1"): ([2], None),
    }
    for seed in (1, 2):  # of other validation images
        file = tmp_path / "runs" / f"small-kd-{seed}" / "inputs.json"
        file.write_text(json.dumps({"val": {"images": 6, "names": "a", "masks": [str(seed)]}}))
    code, _, error = run_cli("benchmark", "table", *folders)
    assert (code, "not measured on the same validation images" in error) == (2, True)


def test_agreement_with_the_teacher_is_called_so(
    tmp_path: Path, run_cli: RunCli, trainings: type[FakeTraining]
) -> None:
    path = write_file(tmp_path, methods=dict.fromkeys(["kd", "aicsd"]), baseline="kd")
    assert run(tmp_path, path, run_cli)[0] == 0
    for file in (tmp_path / "runs").glob("*/metrics.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "labels": "teacher"}))
    shutil.rmtree(tmp_path / "out")
    folders = (tmp_path / "runs").iterdir()
    for code, text, error in (
        run(tmp_path, path, run_cli),
        run_cli("benchmark", "table", *folders),
    ):
        assert code == 0, error
        assert "No image has labels: mIoU is the agreement with the teacher." in text
