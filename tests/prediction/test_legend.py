"""The legend below overlays, found in their pixels; class ids have none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import RunCli
from PIL import Image
from tiny_models import CLASSES, noise, save_tiny_model

from aicsd.legend import classes_in, draw_legend
from aicsd.models import Segmenter, load_model, save_model
from aicsd.prediction import PredictConfig
from aicsd.prediction.stream import predict_stream
from aicsd.visualization import overlay

NAMES = ("road", "car", "person on a bicycle")
PALETTE = ((128, 64, 128), (0, 0, 142), (0, 60, 100))
Box = tuple[int, int, int, int]


def swatches(strip: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> dict[int, Box]:
    """Left, top, width and height of the one patch of each colour, by its place in ``palette``."""
    found = {}
    for index, color in enumerate(palette):
        count, _, boxes, _ = cv2.connectedComponentsWithStats(
            (strip == color).all(axis=2).astype(np.uint8)
        )
        sides = [box[:4].tolist() for box in boxes[1:count] if min(box[2:4]) >= 6]
        assert len(sides) <= 1, color
        if sides:
            found[index] = tuple(sides[0])
    return found


def is_written(strip: np.ndarray, box: Box, until: int) -> bool:
    """There are letters between a swatch and ``until``."""
    left, top, width, height = box
    return bool((strip[top : top + height, left + width + 2 : until].max(axis=2) < 90).any())


def test_a_legend_has_swatch_and_name_of_each_class_in_their_order() -> None:
    strip = draw_legend(NAMES, PALETTE, [0, 2], 400, 300)
    assert strip.shape[1:] == (400, 3)
    assert strip.shape[0] % 2 == 0
    found = swatches(strip, PALETTE)
    assert list(found) == [0, 2]
    assert found[0][0] < found[2][0]
    assert is_written(strip, found[0], found[2][0] - 2)
    assert is_written(strip, found[2], 400)
    # another name changes the pixels behind its swatch and no others
    other = draw_legend(("road", "car", "tree"), PALETTE, [0, 2], 400, 300)
    changed = np.flatnonzero((strip != other).any(axis=(0, 2)))
    assert changed.min() > found[2][0] + found[2][2]


def test_a_legend_takes_as_many_lines_as_it_needs() -> None:
    names = [f"class number {number}" for number in range(8)]
    palette = [(250, 30 * number, 0) for number in range(8)]
    strip = draw_legend(names, palette, range(8), 300, 600)
    found = swatches(strip, palette)
    assert len(found) == 8
    assert len({box[1] for box in found.values()}) == 4  # two of these names fill 300 pixels
    lefts = {box[0] for box in found.values()}
    assert all(is_written(strip, box, box[0] + 100) for box in found.values())
    assert len(lefts) == 2
    assert len(draw_legend(names, palette, range(8), 300, 2 * len(strip))) == len(strip)
    assert len(draw_legend(names, palette, range(8), 300, 2 * len(strip) - 1)) == 0
    assert len(draw_legend(names, palette, [], 300, 600)) == 0


def test_classes_of_a_mask() -> None:
    mask = np.full((4, 5), 255, np.uint8)
    assert classes_in(mask, 3) == []
    mask[1, 2], mask[3, 0] = 2, 0
    assert classes_in(mask, 3) == [0, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """It never predicts class 1."""
    network = load_model(save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors"))
    with torch.no_grad():
        network.net.get_parameter("classifier.bias")[1] = -1e6
    return network


def test_an_overlay_names_the_classes_that_it_shows(
    model: Segmenter, tmp_path: Path, run_cli: RunCli
) -> None:
    save_model(model, tmp_path / "model.safetensors")
    image = noise(320, 240)
    Image.fromarray(image).save(tmp_path / "x.png")
    code, _, error = run_cli(
        "predict", tmp_path / "model.safetensors", tmp_path / "x.png", "--out", tmp_path / "out"
    )
    assert code == 0, error
    ids = np.array(Image.open(tmp_path / "out/x.png"))
    assert np.array_equal(ids, model.predict(image))
    assert set(np.unique(ids)) == {0, 2}
    shown = np.array(Image.open(tmp_path / "out/x_overlay.png"))
    assert np.array_equal(shown[:240], overlay(image, ids, CLASSES.palette))
    assert 0 < len(shown) - 240 < 40
    assert set(swatches(shown[240:], CLASSES.palette)) == {0, 2}


def test_overlays_of_a_stream_have_one_legend_of_all_classes(model: Segmenter) -> None:
    images = [noise(320, 240, seed) for seed in range(2)]
    config = PredictConfig(outputs=("overlay",))
    answers = predict_stream(model, images, config)
    pictures = [np.array(Image.open(io.BytesIO(answer))) for answer in answers]  # type: ignore[arg-type]
    for picture, image in zip(pictures, images, strict=True):
        assert np.array_equal(picture[:240], overlay(image, model.predict(image), CLASSES.palette))
        assert set(swatches(picture[240:], CLASSES.palette)) == {0, 1, 2}
    assert np.array_equal(pictures[0][240:], pictures[1][240:])


def test_every_frame_of_a_video_has_one_legend_of_all_classes(
    model: Segmenter, tmp_path: Path, run_cli: RunCli
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    save_model(model, tmp_path / "model.safetensors")
    with av.open(str(tmp_path / "drive.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "bgr0"
        for seed in range(2):
            frame = av.VideoFrame.from_ndarray(noise(320, 240, seed), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    code, _, error = run_cli(
        "predict", tmp_path / "model.safetensors", tmp_path / "drive.mkv", "--out", tmp_path / "out"
    )
    assert code == 0, error
    with av.open(str(tmp_path / "out/drive_overlay.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 2
    legend = draw_legend(*CLASSES, range(3), 320, 240)
    boxes = swatches(legend, CLASSES.palette)
    assert set(boxes) == {0, 1, 2}
    for frame in shown:
        assert len(frame) == 240 + len(legend)
        for index, (left, top, width, height) in boxes.items():
            middle = frame[240 + top + height // 2, left + width // 2].astype(int)
            assert np.abs(middle - CLASSES.palette[index]).max() < 60  # H.264 is lossy
