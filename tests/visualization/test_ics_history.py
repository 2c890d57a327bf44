"""The ICS matrices that a run keeps of its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from tiny_runs import distill_command

from aicsd.data import open_dataset
from aicsd.errors import UserError
from aicsd.models import load_model
from aicsd.runs import RunFolder
from aicsd.visualization.ics_history import ICSHistory, read_history, write_history
from aicsd.visualization.matrices import draw_ics_training, matrix_sheet
from aicsd.visualization.views import ics_distance, predict_views


def kept(run: Path) -> ICSHistory:
    history = read_history(run)
    assert history is not None
    return history


def test_a_run_keeps_the_matrices_of_teacher_and_student(runs: Path) -> None:
    history = kept(runs / "distilled")
    data = open_dataset("folder", str(runs / "data"), "val", {})
    samples = [data.read(index) for index in range(len(data))]  # fewer than it would take
    assert history.images == data.names
    assert list(history.steps) == [0, 2, 4]
    for name, matrix in (("distilled", history.steps[4]), ("teacher", history.teacher)):
        assert matrix is not None
        found = predict_views(load_model(runs / name), samples).ics
        np.testing.assert_allclose(matrix, found, rtol=1e-4, atol=1e-6)
    assert read_history(runs / "alone") is None  # no term of it compares ICS matrices
    logged = {
        line["step"]: line["val/ics_distance"]
        for line in RunFolder(runs / "distilled").read().lines
        if "val/ics_distance" in line
    }
    assert history.teacher is not None
    assert logged == dict(zip(*history.distances(history.teacher), strict=True))


def test_a_resumed_run_keeps_what_was_before_and_drops_what_came_later(
    runs: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    whole = kept(runs / "distilled")
    run = tmp_path / "run"
    shutil.copytree(runs / "distilled", run)
    (run / "metrics.json").unlink()  # cut after its last checkpoint
    left = ICSHistory(
        whole.images, {0: whole.steps[0], 2: whole.steps[2], 9: whole.steps[4]}, whole.teacher
    )
    write_history(run, left)
    more = ("--method", "aicsd", "--epochs", "2", "--resume")
    code, _, error = run_cli(*distill_command(runs / "data", runs / "teacher", run, *more))
    assert code == 0, error
    assert list(kept(run).steps) == [0, 2, 4]
    for step, matrix in kept(run).steps.items():
        np.testing.assert_array_equal(matrix, whole.steps[step])


def test_a_broken_file_is_named(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "distilled", run)
    (run / "ics.safetensors").write_bytes(b"no")
    code, _, error = run_cli("report", run, "-o", tmp_path / "report.html")
    assert code == 2
    assert f"{run / 'ics.safetensors'} cannot be read" in error
    with pytest.raises(UserError, match="delete it"):
        read_history(run)
    (run / "ics.safetensors").unlink()
    assert read_history(run) is None


def matrices(count: int, seed: int = 0) -> list[np.ndarray]:
    found = np.random.default_rng(seed).random((count, 3, 3))
    return list(found * (1 - np.eye(3)))


def test_the_picture_shows_first_and_last_step_teacher_and_distance() -> None:
    found = matrices(9)
    long = ICSHistory(["a"], {10 * step: found[step] for step in range(8)}, found[8])
    alone = ICSHistory(["a"], {0: found[0], 70: found[5]})
    elsewhere = ICSHistory(["b"], {0: found[0], 70: found[5]})
    short = ICSHistory(["a"], {0: found[0]})
    runs = {"long": long, "alone": alone, "elsewhere": elsewhere, "short": short}
    figure = draw_ics_training(runs, ("x", "y", "z"))
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles == [
        "step 0",
        "step 20",
        "step 40",
        "step 50",
        "step 70",
        "teacher",
        *["step 0", "step 70"] * 2,
    ]
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    np.testing.assert_array_equal(pictures[5], found[8])
    curves = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    assert set(curves) == {"long", "alone"}  # the same images
    assert np.array_equal(curves["alone"].get_xdata(), [0, 70])
    expected = [ics_distance(matrix, found[8]) for matrix in (found[0], found[5])]
    assert np.asarray(curves["alone"].get_ydata()).tolist() == pytest.approx(expected)
    assert draw_ics_training({"short": short}, ("x", "y", "z")) is None


def test_without_a_teacher_there_is_no_curve() -> None:
    found = matrices(2)
    figure = draw_ics_training(
        {"alone": ICSHistory(["a"], {0: found[0], 5: found[1]})}, tuple("xyz")
    )
    assert figure is not None
    assert not [line for axis in figure.axes for line in axis.lines]


def test_a_sheet_has_its_darkest_colour_at_zero() -> None:
    one, two = np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    sheet = matrix_sheet([one, two])
    assert sheet.shape == (320, 640, 3)
    assert sheet[100, 100].tolist() == [68, 1, 84]  # viridis begins there
    assert sheet[100, 200].tolist() == [253, 231, 37]  # and ends here
    assert sheet[100, 520].tolist() == sheet[200, 420].tolist() == sheet[200, 100].tolist()


def test_the_report_has_the_chart(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "report.html"
    folders = (runs / "alone", runs / "distilled")
    code, _, error = run_cli("report", *folders, "-o", out, "--images", 1)
    assert code == 0, error
    assert "L_ICS to the teacher" in out.read_text(encoding="utf-8")
    assert json.dumps("val/ics_distance") in (runs / "distilled" / "metrics.jsonl").read_text()
