"""Inputs that are too large, too small, endless, or of another number format; paths with ``~``."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RunCli
from tiny_models import CLASSES, noise, save_tiny_model
from tiny_network import TinyNetwork, tiny_model
from tiny_runs import aicsd, train_command

from aicsd.config import find_config
from aicsd.data import Sample, SegDataset
from aicsd.errors import BrokenInputError, UserError
from aicsd.evaluation import InferenceConfig, evaluate, infer
from aicsd.evaluation.evaluate import batches_of_equal_size
from aicsd.models import ModelConfig, Segmenter, build_model, load_model
from aicsd.prediction.stream import split_images
from aicsd.teacher import Teacher


class Photo(SegDataset):
    """One image with labels."""

    classes = tiny_model().classes

    def __init__(self) -> None:
        self.names = ["photo"]

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Sample:
        return Sample(noise(160, 128), np.zeros((128, 160), np.uint8))


def test_images_of_many_sizes_do_not_wait_for_each_other() -> None:
    pulled = 0

    def samples() -> Iterator[tuple[int, Sample]]:
        nonlocal pulled
        for width in range(8, 108):
            pulled += 1
            yield width, Sample(np.zeros((8, width, 3), np.uint8), np.zeros((8, width), np.uint8))

    batches = batches_of_equal_size(samples(), 4)
    first = next(batches)
    assert pulled <= 16
    assert sorted(index for batch in [first, *batches] for index, _ in batch) == list(range(8, 108))


@pytest.mark.parametrize("flip", [False, True])
def test_a_large_image_is_cut_into_windows(monkeypatch: pytest.MonkeyPatch, flip: bool) -> None:
    model, image = tiny_model(), torch.from_numpy(noise(160, 128)).permute(2, 0, 1)[None]
    wanted = infer(model, image, InferenceConfig(window=64, flip=flip))
    assert not torch.equal(wanted, infer(model, image, InferenceConfig(flip=flip)))
    for name in ("views", "inference"):
        monkeypatch.setattr(f"aicsd.models.{name}.WHOLE_PIXELS", 100 * 100)
    monkeypatch.setattr("aicsd.models.views.WINDOW", 64)
    largest = 0
    net = model.net
    net.register_forward_pre_hook(lambda _, given: measure(given[0]))

    def measure(pixels: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, *pixels.shape[-2:])

    assert torch.equal(infer(model, image, InferenceConfig(flip=flip)), wanted)
    assert largest == 64


def test_too_little_memory_in_an_evaluation_is_one_line() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 768000000 bytes")

    model = tiny_model()
    model.net.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r"not enough memory for 1 x 160x128 pixels.*--window"):
        evaluate(model, Photo())


class Endless(io.RawIOBase):
    """A start, and zeros without an end."""

    def __init__(self, start: bytes) -> None:
        self.start, self.read_bytes = start, 0

    def read1(self, size: int) -> bytes:
        self.read_bytes += size
        given, self.start = self.start or bytes(size), b""
        return given


@pytest.mark.parametrize(
    "start",
    [
        b"\x89PNG\r\n\x1a\n",  # chunks of no bytes
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIDAT",  # a chunk of 4 GB
        b"\xff\xd8",
        b"",
    ],
)
def test_endless_standard_input(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr("aicsd.prediction.stream.MAX_BYTES", 1 << 20)
    stream = Endless(start)
    with pytest.raises(BrokenInputError, match="an image of more than"):
        list(split_images(stream))  # type: ignore[arg-type]
    assert stream.read_bytes < 2 << 20


def test_a_tilde_is_the_home_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (home / "c.yaml").write_text("val_every: 0\n")
    aicsd(*train_command(tiny_folder, "~/run", "--config", "~/c.yaml", "--epochs", "1"))
    photos = tiny_folder / "images" / "val"
    assert run_cli("predict", "~/run", photos, "--out=~/out")[0] == 0
    assert run_cli("predict", "~/run/model.safetensors", photos, "--out=~/out2")[0] == 0
    assert load_model("~/run").num_parameters() > 0
    assert find_config("~/c.yaml") == home / "c.yaml"
    assert {"c.yaml", "out", "out2", "run"} <= {path.name for path in home.iterdir()}
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    ("backbone", "stride"), [("hrnet_w18_small", 32), ("convnext_atto", 16), ("dla34", 32)]
)
def test_backbones_that_halve_without_rounding_up_take_any_size(backbone: str, stride: int) -> None:
    config = ModelConfig(
        backbone=backbone, output_stride=stride, aspp_channels=8, decoder_channels=8
    )
    model = build_model(config, CLASSES)
    model.net.train()
    loss = model(torch.zeros(2, 3, 65, 97, dtype=torch.uint8)).logits.sum()
    loss.backward()
    for height, width in ((65, 97), (3, 3), (1, 40)):
        assert model.predict(noise(width, height)).shape == (height, width)


def test_an_image_in_a_size_that_the_network_takes_is_not_padded() -> None:
    config = ModelConfig(backbone="convnext_atto", aspp_channels=8, decoder_channels=8)
    model = build_model(config, CLASSES).eval()
    pixels = torch.from_numpy(noise(80, 72)).permute(2, 0, 1)[None]
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model.net(model.normalize(pixels)).logits)


def test_another_output_stride_is_advised() -> None:
    with pytest.raises(UserError, match=r"cannot serve at output_stride 16.*32"):
        build_model(ModelConfig(backbone="hrnet_w18_small"), CLASSES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_in_other_number_formats(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = TinyNetwork().eval()
    image = torch.from_numpy(noise(64, 48)).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = Segmenter(net, tiny_model().classes)(image).logits
        found = Segmenter(net.to(dtype), tiny_model().classes)(image).logits
    assert found.dtype == torch.float32
    teacher = Teacher(Segmenter(net, tiny_model().classes), tiny_model().classes)
    teacher.speed_up("eager", 64)
    assert teacher(image).logits.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(UserError, match=re.escape("image (0, 50, 3) uint8 must be (H, W, 3)")):
        tiny_model().predict(np.zeros((0, 50, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_stands_in_place_of_a_checkpoint(
    tmp_path: Path, run_cli: RunCli, content: bytes, words: str
) -> None:
    (tmp_path / "teacher.pth.tar").write_bytes(content)
    code, _, error = run_cli(
        "import", tmp_path / "teacher.pth.tar", "-o", tmp_path / "m.safetensors"
    )
    assert code == 2
    assert words in error
    assert "weights_only" not in error


def test_saved_sizes_are_read_again(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model.safetensors")
    assert load_model(path).input.least == 1
