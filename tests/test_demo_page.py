"""aicsd demo: the page as a browser shows it, and what it shows."""

from __future__ import annotations

import html
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import RunCli
from PIL import Image
from tiny_models import CLASSES, noise, save_tiny_model

from aicsd.data import Classes
from aicsd.errors import UserError
from aicsd.models import load_model
from aicsd.prediction.page import (
    build_page,
    disagreeing_pairs,
    disagreement,
    legend,
    matrix_picture,
    predict_all,
    read_upload,
    refusing,
    translate,
)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose config names a teacher of another run."""
    place = tmp_path_factory.mktemp("demo")
    save_tiny_model(place / "teacher" / "model.safetensors")
    save_tiny_model(place / "run" / "model.safetensors")
    config = yaml.safe_dump({"teacher": str(place / "teacher")})
    (place / "run" / "config.yaml").write_text(config)
    return place / "run"


def test_a_look_is_the_prediction(run_folder: Path) -> None:
    model = load_model(run_folder)
    image = noise(64, 48, 3)
    views = predict_all({"one": model, "other": model}, image)
    assert np.array_equal(views["one"].ids, model.predict(image))
    assert np.array_equal(views["one"].matrix, views["other"].matrix)
    assert views["one"].seconds > 0


def test_colours_of_a_matrix_have_one_scale() -> None:
    matrix = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    small, large = (matrix_picture(matrix, ("a", "b"), top) for top in (2.0, 20.0))
    assert small.shape == large.shape
    dark = np.abs(small.astype(int) - [68, 1, 84]).sum(axis=2) < 30  # zero, as in the report
    assert dark.mean() > 0.1
    assert (small != large).any()


def test_the_legend_counts_pixels_and_trusts_no_name() -> None:
    classes = Classes(("<b>x</b>", "rare", "absent"), CLASSES.palette)
    text = legend(classes, np.array([[0, 0, 0, 1]], np.uint8))
    assert html.escape("<b>x</b>") + " 75.0" in text
    assert "<b>" not in text
    assert text.index("75.0") < text.index("rare 25.0")
    assert "absent" not in text


def test_disagreement_marks_the_pixels_and_names_the_classes() -> None:
    image = np.full((2, 4, 3), 100, np.uint8)
    one = np.array([[0, 0, 0, 1], [1, 1, 2, 2]], np.uint8)
    other = np.array([[0, 1, 1, 1], [1, 1, 2, 254]], np.uint8)
    picture = disagreement(image, one, other)
    assert picture[0, 0].tolist() == [177] * 3
    assert (picture == [213, 94, 0]).all(axis=2).tolist() == (one != other).tolist()
    text = disagreeing_pairs(one, other, ("a", "<b>", "c"), ("teacher", "student"))
    assert text.split("<br>") == [
        "They disagree on 37.5&nbsp;% of the pixels.",
        "teacher: a, student: &lt;b&gt;: 25.0&nbsp;%",
        "teacher: c, student: another class: 12.5&nbsp;%",
    ]
    assert "<br>" not in disagreeing_pairs(one, one, ("a", "b", "c"), ("x", "y"))


def test_classes_meet_by_name() -> None:
    colors = CLASSES.palette
    ids = np.array([[0, 1, 2]], np.uint8)
    found = translate(ids, Classes(("a", "b", "c"), colors), Classes(("c", "d", "a"), colors))
    assert found.tolist() == [[2, 254, 0]]


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_upload_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^[^\n/]*photo\.png[^\n/]*$"):
        read_upload(path)


def test_an_upload_of_too_many_pixels_is_refused_by_its_head(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (8192, 4096)).save(path)
    with pytest.raises(UserError, match=r"8192 x 4096 pixels, and this page takes up to 16\.8"):
        read_upload(path)


def test_the_page_answers_a_broken_upload(run_folder: Path, tmp_path: Path) -> None:
    import gradio
    from gradio.data_classes import ImageData

    page = build_page({"student": load_model(run_folder)})
    source = next(b for b in page.blocks.values() if isinstance(b, gradio.Image))
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(gradio.Error, match=r"photo\.png"):
        source.preprocess(ImageData(path=str(tmp_path / "photo.png")))
    assert source.preprocess(None) is None


def test_without_gradio(run_folder: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_cli("demo", run_folder) == (
        2,
        "",
        "aicsd: error: the demo page needs Gradio: pip install 'aicsd[demo]'\n",
    )


def test_a_port_that_is_taken(run_folder: Path, run_cli: RunCli) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, printed, error = run_cli("demo", run_folder, "--port", port)
    assert (code, printed) == (2, "")
    assert error.startswith(f"aicsd: error: port {port} ")
    assert error.count("\n") == 1


@pytest.fixture
def address(run_folder: Path, tmp_path: Path) -> Iterator[str]:
    """Address of the page, served by the command."""
    pytest.importorskip("playwright", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "aicsd", "demo", str(run_folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + server.stderr.read()
        yield line.split()[0]
        server.kill()


def test_an_upload_in_the_browser(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import Route, sync_playwright

    Image.fromarray(noise(64, 48, 3)).save(tmp_path / "photo.png")
    foreign = []

    def stay_here(route: Route) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1300})
        page.route("**/*", stay_here)
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
        page.get_by_text("for 64 x 48 pixels").nth(1).wait_for(timeout=60_000)
        page.wait_for_function(
            "[...document.querySelectorAll('img')].filter(i => i.naturalWidth > 0).length >= 6",
            timeout=60_000,
        )
        text = page.inner_text("body")
        pictures = page.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        browser.close()
    assert "teacher" in text
    assert "student" in text
    assert all(text.count(name) >= 2 for name in CLASSES.names)  # in both legends
    assert pictures.count(64) == 4  # the image, two overlays and where they disagree
    assert "They disagree on 0.0" in text  # two copies of one network
    assert not foreign


def test_a_file_that_is_no_image_is_one_line() -> None:
    class Error(Exception):
        def __init__(self, text: str, print_exception: bool) -> None:
            super().__init__(text)
            assert not print_exception

    def read(payload: str) -> str:
        if payload == "bad":
            raise OSError("cannot identify image file")
        return payload

    call = refusing(read, Error)
    assert call("good") == "good"
    with pytest.raises(Error, match="not a readable image"):
        call("bad")
