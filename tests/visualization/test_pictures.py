"""aicsd visualize: the files, and that the pictures show what they say."""

from __future__ import annotations

import base64
import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, RunCli
from PIL import Image

from aicsd.data import Classes, Sample, open_dataset
from aicsd.losses import ics_matrix, icsd_loss
from aicsd.models import ModelConfig, Segmenter, build_model, load_model
from aicsd.visualization.charts import Line, draw_chart, heat_map, nice_ticks
from aicsd.visualization.curves import draw_curves, smooth
from aicsd.visualization.distributions import draw_distributions
from aicsd.visualization.gallery import as_file_name
from aicsd.visualization.matrices import draw_ics
from aicsd.visualization.panels import contact_sheet, draw_panels
from aicsd.visualization.views import error_map, ics_distance, predict_views, shown_indices

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (250, 0, 0), (0, 250, 0)))


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return build_model(ModelConfig(**TINY_MODEL), CLASSES).eval()


def sample(seed: int = 0, height: int = 48, width: int = 64) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 3, (height, width)).astype(np.uint8))


@pytest.fixture
def moved(runs: Path, tmp_path: Path) -> Path:
    """A run whose teacher is no longer where it was."""
    run = tmp_path / "moved"
    shutil.copytree(runs / "distilled", run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(runs / "teacher"), str(tmp_path / "gone")))
    return run


def test_command(runs: Path, moved: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "out"
    code, printed, error = run_cli(
        "visualize", moved, runs / "alone", "--teacher", runs / "teacher", "--out", out,
        "--images", 2,
    )  # fmt: skip
    assert code == 0, error
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    names = ["panels", "ics", "ics_training", "curves"]
    names += [
        f"distributions/{image}-{network}"
        for image in ("001", "003")
        for network in ("teacher", "student-alone", "student-AICSD")
    ]
    assert written == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {str(out / name) for name in written} == set(printed.split())
    for path in out.rglob("*.png"):
        width, height = Image.open(path).size
        assert 400 <= width <= 1100
        assert height > 100


def test_a_teacher_that_is_gone_is_told_and_left_out(
    moved: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    code, printed, error = run_cli("visualize", moved, "--out", tmp_path / "out", "--images", 1)
    assert code == 0
    assert error.count("\n") == 1
    assert f"no model at {tmp_path / 'gone'}" in error
    assert "-teacher." not in printed


@pytest.mark.parametrize("command", [("visualize", "--out"), ("report", "-o")])
def test_errors(runs: Path, tmp_path: Path, run_cli: RunCli, command: tuple[str, str]) -> None:
    name, out = command[0], (command[1], tmp_path / "out.html")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("run: x\n")
    other = tmp_path / "other"
    shutil.copytree(runs / "data", other)
    (other / "classes.txt").write_text("ground\ndisc\nrod\n")
    for arguments, message in (
        ((tmp_path / "nowhere",), "is not a run folder"),
        ((unfinished,), "not a finished run: no metrics.json"),
        ((runs / "alone", "--images", 0), "images is 0"),
        ((runs / "alone", "--teacher", tmp_path / "none"), "no model at"),
        ((runs / "teacher", "--teacher", runs / "teacher"), "the only run is the teacher"),
        ((runs / "alone", "--data.root", other), "rod"),
        ((runs / "alone", "--data.split", "tset"), "tset"),
    ):
        code, _, error = run_cli(name, *arguments, *out)
        assert code == 2, arguments
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out.html").exists()


def test_distributions_show_every_class_with_its_own_map(model: Segmenter) -> None:
    shown = sample()
    figure = draw_distributions(model, shown, CLASSES)
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles == ["image", "ground truth", "a", "b", "c"]
    logits = model.image_output(shown.image).logits.double()
    for axis, map_of_class in zip(figure.axes[2:5], logits[0], strict=True):
        rho = np.array(axis.images[0].get_array(), dtype=np.float64) ** 2
        row, column = divmod(int(rho.argmax()), rho.shape[1])
        scale = (np.array(rho.shape) - 1) / (np.array(map_of_class.shape) - 1)
        peak = divmod(int(map_of_class.argmax()), map_of_class.shape[1])
        assert np.abs(np.array((row, column)) / scale - peak).max() <= 0.51
        assert rho.max() <= float(map_of_class.flatten().softmax(0).max()) + 1e-6


def test_ics_figure_holds_matrices_and_differences() -> None:
    rng = np.random.default_rng(0)
    teacher, one, two = (rng.random((3, 3)) * (1 - np.eye(3)) for _ in range(3))
    figure = draw_ics(("teacher", teacher), {"one": one, "two": two}, CLASSES.names)
    pictures = [axis.images[0] for axis in figure.axes if axis.images]
    arrays = [np.asarray(picture.get_array()) for picture in pictures]
    lengths = [np.sqrt((matrix**2).sum(axis=1, keepdims=True)) for matrix in (teacher, one, two)]
    unit = [matrix / length for matrix, length in zip((teacher, one, two), lengths, strict=True)]
    wanted = [teacher, one, two, unit[1] - unit[0], unit[2] - unit[0]]
    assert len(arrays) == 5
    for array, matrix in zip(arrays, wanted, strict=True):
        np.testing.assert_allclose(array, matrix, atol=1e-12)
    assert len({picture.get_clim() for picture in pictures[:3]}) == 1
    low, high = pictures[3].get_clim()
    assert low == -high


def test_the_distance_is_the_loss() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 6, 7, dtype=torch.float64)
    matrices = [ics_matrix(logits)[0].numpy() for logits in (student, teacher)]
    loss = float(icsd_loss(student, teacher))
    assert ics_distance(*matrices) == pytest.approx(loss, rel=1e-9)
    assert loss > 0


def test_views_are_predictions_and_mean_matrices(runs: Path) -> None:
    student = load_model(runs / "distilled")
    data = open_dataset("folder", str(runs / "data"), "val", {})
    samples = [data.read(index) for index in (0, 2)]
    views = predict_views(student, samples)
    for mask, one in zip(views.masks, samples, strict=True):
        np.testing.assert_array_equal(mask, student.predict(one.image))
    single = [predict_views(student, [one]).ics for one in samples]
    np.testing.assert_allclose(views.ics, (single[0] + single[1]) / 2)
    assert np.diag(views.ics).tolist() == [0, 0, 0]


def test_error_map_by_hand() -> None:
    mask = np.array([[0, 1, 255], [2, 2, 255]], np.uint8)
    predicted = np.array([[0, 2, 255], [2, 0, 1]], np.uint8)
    assert error_map(mask, predicted).tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("errors", [False, True])
def test_panels_have_a_row_for_every_sample(errors: bool) -> None:
    samples = [sample(0), sample(1, 32, 80)]
    predictions = {"net": [one.mask for one in samples]}
    figure = draw_panels(samples, predictions, CLASSES, errors=errors)
    pictures = [
        np.asarray(axis.images[0].get_array()).shape[:2] for axis in figure.axes if axis.images
    ]
    assert pictures == [*[(48, 64)] * (4 if errors else 3), *[(32, 80)] * (4 if errors else 3)]


def test_contact_sheet_is_small_and_in_order(model: Segmenter) -> None:
    samples = [sample(0, 300, 600), sample(1, 32, 80)]
    sheet = contact_sheet(model, samples, CLASSES)
    assert sheet.shape == (2 * 128, 3 * 256, 3)
    assert set(np.unique(sheet[:, 256:])) <= {0, 250}  # labels and predictions: colours, no mixture


def test_curves_hold_terms_over_weights() -> None:
    lines = [
        {"step": step, "loss": 2.0, "loss/kd": 1.0, "weight/kd": 3.0 - step, "lr": 0.1}
        for step in (1, 2)
    ]
    figure = draw_curves({"run": [*lines, {"step": 2, "val/miou": 0.25}]})
    assert [axis.get_title() for axis in figure.axes] == ["loss", "kd", "", ""]
    drawn = [np.asarray(axis.lines[-1].get_ydata()).tolist() for axis in figure.axes]
    assert drawn == [[2.0, 2.0], [1.0, 1.0], [25.0], [2.0, 1.0]]


def test_smooth_keeps_constants_and_the_mean_of_neighbours() -> None:
    assert smooth([3.0] * 100) == pytest.approx([3.0] * 100)
    values = [float(number % 2) for number in range(40)]  # reach 1
    assert smooth(values)[10] == pytest.approx((values[9] + values[10] + values[11]) / 3)
    assert smooth([]) == []


@pytest.mark.parametrize("highest", [3e-7, 0.02, 0.99, 1.0, 7, 20, 123456])
def test_ticks_are_few_and_round(highest: float) -> None:
    ticks = nice_ticks(highest)
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= 6
    assert ticks[-1] <= highest * (1 + 1e-9)
    step = ticks[1]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5, 10)


def test_chart_by_hand() -> None:
    chart = draw_chart("t", [Line("a", [0, 100], [0.0, 2.0], 1), Line("empty", [], [], 2)])
    assert chart is not None
    assert chart.lines == [("a", 1, "44,176 352,8")]
    assert chart.across[-1] == (352.0, "100")
    assert draw_chart("t", [Line("empty", [], [], 0)]) is None


def test_heat_map_pixels() -> None:
    found = heat_map(np.array([[0.0, 1.0], [np.nan, 0.25]]), "viridis", 0, 1)
    assert found["values"] == [[0.0, 1.0], [None, 0.25]]
    content = base64.b64decode(found["picture"].split(",")[1])
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels[0, 0].tolist() == [68, 1, 84]
    assert pixels[0, 1].tolist() == [253, 231, 37]
    assert pixels[1, 0].tolist() == [128, 128, 128]


def test_spread_and_file_names() -> None:
    ten: Any = range(10)
    assert shown_indices(ten, 2) == [2, 7]
    assert shown_indices(ten, 99) == list(range(10))
    assert as_file_name("student AICSD (a/b)") == "student-AICSD-a-b"
