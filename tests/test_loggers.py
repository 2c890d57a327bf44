"""--logger: TensorBoard, and the calls that Weights & Biases and MLflow get."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import RunCli
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import NO_REPORT, distill_command, lines, train_command

FAKE_WANDB = """
import os

CALLS = []


class Image:
    def __init__(self, array):
        self.shape = array.shape


class Run:
    def __init__(self, id):
        self.id = id or "abc"

    def define_metric(self, name, step_metric):
        CALLS.append(("define_metric", name, step_metric))

    def log(self, values):
        CALLS.append(("log", values))

    def finish(self, exit_code):
        CALLS.append(("finish", exit_code))


def init(*, project, name, dir, config, id, resume):
    assert os.path.isdir(dir)
    CALLS.append(("init", project, name, config["epochs"], id, resume))
    return Run(id)
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with the part of W&B's interface that is used."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield importlib.import_module("wandb")
    sys.modules.pop("wandb", None)


def events(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run), size_guidance={"images": 0})
    board.Reload()
    return board


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if value is not None and key != "step"}


def test_tensorboard_gets_pictures_at_every_validation(runs: Path) -> None:
    shown = events(runs / "distilled").Images("val/pictures")
    wanted = [line["step"] for line in lines(runs / "distilled") if "val/miou" in line]
    assert [event.step for event in shown] == wanted
    assert (shown[0].width, shown[0].height) == (3 * 64, 3 * 48)


def test_none_writes_no_events(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    command = train_command(runs / "data", run, "--epochs", 1, "--logger", "none", *NO_REPORT)
    assert run_cli(*command)[0] == 0
    assert not list(run.glob("events*"))
    assert len(lines(run)) == 3


def test_wandb_gets_the_lines_of_the_log(
    runs: Path, tmp_path: Path, run_cli: RunCli, wandb: Any
) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", 1, "--logger", "wandb,tensorboard", *NO_REPORT)
    command = distill_command(runs / "data", runs / "teacher", run, "--method", "icsd", *flags)
    code, _, error = run_cli(*command)
    assert code == 0, error
    assert wandb.CALLS[0] == ("init", "aicsd", "run", 1, None, "allow")
    logged = [call[1] for call in wandb.CALLS if call[0] == "log"]
    pictures = [values for values in logged if {"val/pictures", "val/ics"} & set(values)]
    assert [values["step"] for values in pictures if "val/ics" in values] == [0, 2]
    shapes = [values["val/pictures"].shape for values in pictures if "val/pictures" in values]
    assert shapes == [(3 * 48, 3 * 64, 3)]
    figures = [values for values in logged if values not in pictures]
    assert figures == [{**numbers(line), "step": line["step"]} for line in lines(run)]
    assert wandb.CALLS[-1] == ("finish", 0)
    assert list(run.glob("events*"))


def test_wandb_continues_the_run_that_is_resumed(
    runs: Path, tmp_path: Path, run_cli: RunCli, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aicsd.engine.reporting import RunLogger

    run = tmp_path / "run"
    write = RunLogger.scalars

    def cut(self: RunLogger, step: int, values: dict[str, Any]) -> None:
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), 15)

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "scalars", cut)
        command = train_command(runs / "data", run, "--epochs", 1, "--logger", "wandb", *NO_REPORT)
        assert run_cli(*command)[0] == 130
    assert wandb.CALLS[-1] == ("finish", 1)
    assert json.loads((run / "loggers.json").read_text()) == {"wandb": "abc"}
    assert run_cli("train", "--run", run, "--resume")[0] == 0
    begins = [call for call in wandb.CALLS if call[0] == "init"]
    assert begins[1] == ("init", "aicsd", "run", 1, "abc", "allow")
    assert wandb.CALLS[-1] == ("finish", 0)


def test_all_loggers_get_the_same_pictures_of_a_run(
    runs: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, dict[str, np.ndarray]] = {"wandb": {}, "mlflow": {}}

    class Fake:
        """What is used of a run of W&B and of a client of MLflow."""

        id = run_id = experiment_id = "abc"
        info = property(lambda self: self)

        def __getattr__(self, name: str) -> Callable[..., Fake]:
            return lambda *_, **__: self

        def log(self, values: dict[str, Any]) -> None:
            step = values["step"]
            kept["wandb"] |= {f"{k}-{step}": v for k, v in values.items() if np.ndim(v) == 3}

        def log_image(self, run: str, image: np.ndarray, artifact_file: str) -> None:
            assert run == "abc"
            kept["mlflow"][artifact_file.removesuffix(".png")] = image

    tracking = SimpleNamespace(MlflowClient=Fake)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(tracking=tracking))
    wandb = SimpleNamespace(init=lambda **_: Fake(), Image=lambda image: image)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("aicsd.run_config.find_spec", lambda name: name)
    run = tmp_path / "run"
    flags = ("--epochs", 1, "--logger", "tensorboard,wandb,mlflow", *NO_REPORT)
    command = distill_command(runs / "data", runs / "teacher", run, "--method", "icsd", *flags)
    code, _, error = run_cli(*command)
    assert code == 0, error
    board = events(run)
    shown = {
        f"{tag}-{event.step}": np.array(Image.open(io.BytesIO(event.encoded_image_string)))
        for tag in board.Tags()["images"]
        for event in board.Images(tag)
    }
    assert shown.keys() == {"val/ics-0", "val/ics-2", "val/pictures-2"}
    for held in kept.values():
        assert held.keys() == shown.keys()
        assert all(np.array_equal(held[name], picture) for name, picture in shown.items())


def test_mlflow_keeps_figures_settings_and_pictures(
    runs: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(runs / "data", data)
    (data / "classes.txt").write_text("ground\nperson (sitting)\nbar\n")
    command = train_command(data, run, "--epochs", 1, "--logger", "mlflow", *NO_REPORT)
    code, _, error = run_cli(*command)
    assert code == 0, error
    client = mlflow.tracking.MlflowClient()
    kept = client.get_run(json.loads((run / "loggers.json").read_text())["mlflow"])
    assert kept.info.status == "FINISHED"
    assert kept.data.params["epochs"] == "1"
    losses = client.get_metric_history(kept.info.run_id, "loss/total")
    wanted = [(line["step"], line["loss"]) for line in lines(run) if "loss" in line]
    assert [(metric.step, metric.value) for metric in losses] == wanted
    assert "val_iou/person _sitting_" in kept.data.metrics
    assert [item.path for item in client.list_artifacts(kept.info.run_id, "val")] == [
        "val/pictures-2.png",
    ]


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("none,wandb", "unknown 'none'"),
        ("wandb", "wandb is not installed; pip install wandb"),
    ],
)
def test_a_logger_that_cannot_be_used_is_refused_before_the_run(
    runs: Path,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    logger: str,
    message: str,
) -> None:
    monkeypatch.setattr("aicsd.run_config.find_spec", lambda name: None)
    run = tmp_path / "run"
    code, _, error = run_cli(*train_command(runs / "data", run, "--logger", logger))
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not run.exists()
