"""Evaluation where memory is small, and of images of many sizes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest
import torch
from conftest import RunCli
from started import SERVER
from tiny_network import CLASSES, tiny_model
from tiny_runs import train_command
from torch import Tensor, nn

from aicsd.benchmark.latency import measure_latency
from aicsd.cli import main
from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError
from aicsd.evaluation import evaluate
from aicsd.models import InferenceConfig
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.teacher.labels import TeacherLabelled
from aicsd.visualization.views import predict_views

T = TypeVar("T")
LARGE, SMALL = (1640, 1640), (960, 960)
CUT = InferenceConfig(window=1025)
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")


class Noise(SegDataset):
    """Images of the sizes that it is given, (H, W), with masks."""

    classes = CLASSES

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes, self.names = sizes, [str(number) for number in range(len(sizes))]

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, index: int) -> Sample:
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        return Sample(image, (image[..., 0] % 3).astype(np.uint8))


def bytes_of_this_process(place: int) -> int:
    """Column ``place`` of ``statm``: 0 is all that is mapped, 1 what is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[place]) * resource.getpagesize()


def in_a_process(work: Callable[..., T], *arguments: object) -> T:
    with ProcessPoolExecutor(1, SERVER) as pool:
        return pool.submit(work, *arguments).result()


def refused(call: Callable[[], object]) -> str:
    """The message; what ``pytest.raises`` keeps would hold on to the memory of the call."""
    try:
        call()
    except UserError as error:
        return str(error)
    raise AssertionError("not refused")


def with_900_mb(place: Path) -> list[str]:
    """Refusals and their messages; results equal those with enough memory."""
    model = tiny_model()
    wide = 100  # channels of 4 bytes: 420 MB for 1025 x 1025 pixels

    def fill(_: nn.Module, given: tuple[Tensor]) -> None:
        torch.empty(len(given[0]), wide, *given[0].shape[-2:])

    model.net.register_forward_pre_hook(fill)
    large, batch = Noise(LARGE), Noise(*[SMALL] * 3)
    cut = evaluate(model, large, inference=CUT, batch_size=1).confusion
    single = evaluate(model, batch, batch_size=1).confusion
    sample, teacher = large.read(0), Teacher(model, CLASSES)
    half = cv2.resize(sample.image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    seen = predict_views(model, [Sample(half.astype(np.uint8), sample.mask)])
    windows = model.predict(sample.image, CUT)

    resource.setrlimit(resource.RLIMIT_AS, (bytes_of_this_process(0) + (900 << 20),) * 2)
    told = [refused(lambda: evaluate(model, large))]
    said: list[str] = []
    assert evaluate(model, large, cut=said.append).confusion == cut
    assert evaluate(model, batch, batch_size=3, cut=said.append).confusion == single
    told += said
    assert len(said) == 1
    found = predict_views(model, [sample])
    assert np.array_equal(found.ics, seen.ics)
    assert np.array_equal(found.masks[0], seen.masks[0].repeat(2, axis=0).repeat(2, axis=1))
    assert np.array_equal(TeacherLabelled(large, teacher).read(0).mask, windows)
    told += [
        refused(lambda: TeacherCache(place / "cache", 0).attach(large, teacher, 0)),
        refused(lambda: measure_latency({"": model}, size=LARGE, repeats=1)),
        refused(lambda: model.predict(sample.image)),
    ]
    wide = 256
    return [*told, refused(lambda: evaluate(model, large, cut=said.append))]


def megabytes_after_many_sizes() -> int:
    """More than after one size, with a network that leaves small blocks between large ones."""
    model, kept = tiny_model(), []

    def hold(_: nn.Module, given: tuple[Tensor]) -> None:
        for part in range(24):
            _maps = torch.ones(part + 1, *given[0].shape[-2:])
            kept.append(torch.ones(1000))

    model.net.register_forward_pre_hook(hold)
    sizes = [(200, 400 + 7 * number) for number in range(40)]
    evaluate(model, Noise(*sizes[:1] * 3))
    before = bytes_of_this_process(1)
    evaluate(model, Noise(*sizes), batch_size=1)
    return (bytes_of_this_process(1) - before) >> 20


@linux
def test_memory_of_many_sizes_is_given_back() -> None:
    grown = in_a_process(megabytes_after_many_sizes)
    assert grown < 350  # 159 MB; 595 without malloc_trim


@linux
def test_too_little_memory(tmp_path: Path) -> None:
    """One line, or windows where no option can set them; batches give way to single images.

    Pictures are of smaller images then.
    """
    whole, cut, cache, latency, single, hopeless = in_a_process(with_900_mb, tmp_path)
    assert whole.startswith("not enough memory for 1 x 1640x1640 pixels at once;")
    assert whole.endswith("cut large images with --window 1025, or less")
    assert cut == "not enough memory for 1640x1640 pixels at once: windows of 1025, one by one"
    assert cache.startswith(
        "not enough memory for the teacher on the whole of '0', 1640x1640 pixels:"
    )
    assert latency == "not enough memory for 1 x 1640x1640 pixels: lower --batch or --size"
    assert single == whole
    assert hopeless.startswith("not enough memory for an image of 1640x1640 pixels, not even in")


def test_a_training_and_any_command_with_too_little_memory(
    tiny_folder: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 2.00 GiB")

    monkeypatch.setattr("aicsd.engine.fit.train_step", fail)
    code, _, error = run_cli(*train_command(tiny_folder, tmp_path / "run"))
    assert (code, error.splitlines()[-1].partition(": lower")[0]) == (
        2,
        "aicsd: error: not enough memory for this training",
    )
    monkeypatch.setattr("aicsd.cli._run", fail)
    code, out, error = run_cli("predict")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "not enough memory; use fewer or smaller images at once: CUDA out of memory" in error

    def break_down(*_: object) -> None:
        raise RuntimeError("another")

    monkeypatch.setattr("aicsd.cli._run", break_down)
    with pytest.raises(RuntimeError, match="another"):
        main(["predict"])
