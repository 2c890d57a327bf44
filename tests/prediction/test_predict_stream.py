"""aicsd predict in pipelines: images on standard input, PNGs on standard output."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_models import CLASSES, noise, save_tiny_model

from aicsd.cli import main
from aicsd.errors import BrokenInputError
from aicsd.models import load_model
from aicsd.prediction.stream import split_images
from aicsd.visualization import colorize, overlay

Predict = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def encoded(seed: int, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 48, seed)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def predict(
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Predict:
    """Call the command line in this process: (exit code, standard output, standard error)."""

    def call(data: bytes, *arguments: object) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(model_file), *map(str, arguments), "--out", "-"])
        output, error = capsysbinary.readouterr()
        return int(stop.value.code or 0), output, error.decode()

    return call


def pictures(data: bytes) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(part))) for part in split_images(io.BytesIO(data))]


def with_streams(descriptors: list[int], arguments: list[str]) -> None:
    """``aicsd`` with these as standard input, output and error."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate("rww"))
    cv2.setNumThreads(0)  # threads of the parent are not there
    main(arguments)


def test_a_pipeline(model_file: Path) -> None:
    """In a process of its own, whose streams are pipes; they hold more than is written here."""
    pipes = [os.pipe() for _ in range(3)]
    inner = [pipes[0][0], pipes[1][1], pipes[2][1]]
    os.write(pipes[0][1], encoded(0, "PNG"))
    os.close(pipes[0][1])
    process = multiprocessing.get_context("fork").Process(
        target=with_streams, args=(inner, ["predict", str(model_file), "-", "--out", "-"])
    )
    process.start()
    for descriptor in inner:
        os.close(descriptor)
    with os.fdopen(pipes[1][0], "rb") as output_pipe, os.fdopen(pipes[2][0]) as error_pipe:
        output, error = output_pipe.read(), error_pipe.read()
    process.join(120)
    assert process.exitcode == 0, error
    with Image.open(io.BytesIO(output)) as file:
        assert (file.format, file.mode) == ("PNG", "P")
    (ids,) = pictures(output)
    assert len(np.unique(ids)) == 3
    assert np.array_equal(ids, load_model(model_file).predict(noise(64, 48)))
    assert error.startswith("1 image (")
    assert error.count("\n") == 1


def test_several_images_one_of_them_broken(model_file: Path, predict: Predict) -> None:
    images = [encoded(0, "PNG"), encoded(1, "JPEG", quality=95), encoded(2, "PNG")]
    broken = bytearray(images[1])
    broken[2:200] = bytes(198)  # what follows is searched for a marker, and the end is found
    data = images[0] + bytes(broken) + images[2]
    code, output, error = predict(data, "-", "--outputs", "overlay")
    assert code == 2
    assert "standard input: image 2 is not readable" in error
    model = load_model(model_file)
    for shown, seed in zip(pictures(output), (0, 2), strict=True):
        image = noise(64, 48, seed)
        assert np.array_equal(shown, overlay(image, model.predict(image), CLASSES.palette))


def test_files_to_standard_output(model_file: Path, predict: Predict, tmp_path: Path) -> None:
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(encoded(seed, "PNG"))
    code, output, error = predict(b"", tmp_path, "--outputs", "color")
    assert code == 0, error
    model = load_model(model_file)
    for seed, shown in enumerate(pictures(output)):
        wanted = colorize(model.predict(noise(64, 48, seed)), CLASSES.palette)
        assert np.array_equal(shown, wanted)
    assert seed == 1


@pytest.mark.parametrize(
    ("data", "flags", "words"),
    [
        (b"", [], "standard input is empty"),
        (b"not an image", [], "image 1 is not readable"),
        (encoded(0, "PNG")[:-20], [], "ends within an image"),
        (encoded(0, "PNG"), ["--outputs", "ids,color"], "outputs is ids,color"),
        (encoded(0, "PNG"), ["--outputs", "probabilities"], "outputs is probabilities"),
    ],
)
def test_refused(predict: Predict, data: bytes, flags: list[str], words: str) -> None:
    code, output, error = predict(data, "-", *flags)
    assert (code, output) == (2, b"")
    assert error.startswith("aicsd: error: ")
    assert words in error
    assert error.count("\n") == 1


class Trickle(io.BytesIO):
    """A pipe that hands on ``size`` bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self.size = size

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(self.size)


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_images_are_split_where_they_end(size: int) -> None:
    # a preview within the EXIF segment has an end marker of its own, 255s have escaped markers
    preview = Image.Exif()
    preview[0x9286] = encoded(5, "JPEG")
    parts = [
        encoded(0, "JPEG", quality=100),
        encoded(1, "PNG"),
        encoded(2, "JPEG", progressive=True),
        encoded(3, "JPEG", restart_marker_blocks=1),
        encoded(4, "JPEG", exif=preview),
        encoded(4, "PNG"),
    ]
    assert parts[4].count(b"\xff\xd9") > 1
    assert list(split_images(Trickle(b"".join(parts), size))) == parts


def test_an_image_is_handed_on_before_the_next_one_comes() -> None:
    first = encoded(0, "JPEG")
    images = split_images(Trickle(first + encoded(1, "PNG")[:30], 1))
    assert next(images) == first
    with pytest.raises(BrokenInputError, match="ends within"):
        next(images)


def test_other_formats_come_alone() -> None:
    webp = encoded(0, "WEBP")
    assert list(split_images(Trickle(webp, 100))) == [webp]
    images = split_images(Trickle(encoded(0, "PNG") + webp, 100))
    next(images)
    with pytest.raises(BrokenInputError, match="follows image 1 is neither PNG nor JPEG"):
        next(images)
