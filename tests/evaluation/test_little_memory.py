"""Evaluation where memory is small, and of images of many sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import RunCli
from tiny_runs import train_command

from aicsd.cli import main

TESTS = Path(__file__).parents[1]
START = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
import cv2
import numpy as np
import torch
from aicsd.data.protocol import Sample, SegDataset
from aicsd.benchmark.latency import measure_latency
from aicsd.errors import UserError
from aicsd.evaluation import evaluate
from aicsd.models import InferenceConfig
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.teacher.labels import TeacherLabelled
from aicsd.visualization.views import look
from tiny_network import CLASSES, tiny_model

class Noise(SegDataset):
    classes = CLASSES
    def __init__(self, *sizes):
        self.sizes, self.names = sizes, [str(n) for n in range(len(sizes))]
    def __len__(self):
        return len(self.sizes)
    def read(self, index):
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        return Sample(image, (image[..., 0] % 3).astype(np.uint8))

model = tiny_model()
def statm(place):
    return int(open("/proc/self/statm").read().split()[place]) * resource.getpagesize()
"""
LIMITED = """
wide = 64  # channels of 4 bytes: 268 MB for 1024 x 1024 pixels
def fill(_, given):
    torch.empty(len(given[0]), wide, *given[0].shape[-2:])
model.net.register_forward_pre_hook(fill)
large, batch = Noise((2048, 2048)), Noise(*[(1024, 1024)] * 3)
cut = evaluate(model, large, inference=InferenceConfig(window=1025), batch_size=1).confusion
single = evaluate(model, batch, batch_size=1).confusion
sample, teacher = large.read(0), Teacher(model, CLASSES)
half = Sample(cv2.resize(sample.image, (1024, 1024), interpolation=cv2.INTER_AREA), sample.mask)
seen = look(model, [half])
windows = model.predict(sample.image, InferenceConfig(window=1025))
resource.setrlimit(resource.RLIMIT_AS, (statm(0) + (700 << 20),) * 2)
try:
    evaluate(model, large)
except UserError as error:
    print(error)
said = []
assert evaluate(model, large, cut=said.append).confusion == cut
print(*said)
assert evaluate(model, batch, batch_size=3, cut=said.append).confusion == single
assert len(said) == 1
found = look(model, [sample])
assert np.array_equal(found.ics, seen.ics)
assert np.array_equal(found.masks[0], seen.masks[0].repeat(2, axis=0).repeat(2, axis=1))
assert np.array_equal(TeacherLabelled(large, teacher).read(0).mask, windows)
for fails in (
    lambda: TeacherCache(Path(folder), 0).attach(large, teacher, 0),
    lambda: measure_latency({"": model}, size=(2048, 2048), repeats=1),
    lambda: model.predict(sample.image),
):
    try:
        fails()
    except UserError as error:
        print(error)
wide = 256
try:
    evaluate(model, large, cut=said.append)
except UserError as error:
    print(error)
"""
MANY = """
def hold(_, given):  # what a network of many layers leaves between its maps
    for part in range(24):
        maps = torch.ones(part + 1, *given[0].shape[-2:])
        kept.append(torch.ones(1000))
kept = []
model.net.register_forward_pre_hook(hold)
sizes = [(400, 400 + 7 * number) for number in range(40)]
evaluate(model, Noise(*sizes[:1] * 3))
before = statm(1)
evaluate(model, Noise(*sizes), batch_size=1)
print((statm(1) - before) >> 20)
"""


def run(program: str, folder: object = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{START}folder = {str(folder)!r}\n{program}"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")
def test_memory_of_many_sizes_is_given_back() -> None:
    """A network that leaves small blocks between large ones; 1375 MB stay where none is."""
    (grown,) = run(MANY)
    assert int(grown) < 700


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")
def test_too_little_memory(tmp_path: Path) -> None:
    """One line, or windows where no option can set them; batches give way to single images.

    Pictures are of smaller images then.
    """
    refused, cut, cache, latency, single, hopeless = run(LIMITED, tmp_path)
    assert refused.startswith("not enough memory for 1 x 2048x2048 pixels at once;")
    assert refused.endswith("cut large images with --window 1025, or less")
    assert cut == "not enough memory for 2048x2048 pixels at once: windows of 1025, one by one"
    assert cache.startswith(
        "not enough memory for the teacher on the whole of '0', 2048x2048 pixels:"
    )
    assert latency == "not enough memory for 1 x 2048x2048 pixels: lower --batch or --size"
    assert single == refused
    assert hopeless.startswith("not enough memory for an image of 2048x2048 pixels, not even in")


def test_a_training_and_any_command_with_too_little_memory(
    tiny_folder: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 2.00 GiB")

    monkeypatch.setattr("aicsd.engine.fit.train_step", fail)
    code, _, error = run_cli(*train_command(tiny_folder, tmp_path / "run"))
    assert (code, error.splitlines()[-1].partition(": lower")[0]) == (
        2, "aicsd: error: not enough memory for this training"
    )  # fmt: skip
    monkeypatch.setattr("aicsd.cli._run", fail)
    code, out, error = run_cli("predict")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "not enough memory; use fewer or smaller images at once: CUDA out of memory" in error

    def break_down(*_: object) -> None:
        raise RuntimeError("another")

    monkeypatch.setattr("aicsd.cli._run", break_down)
    with pytest.raises(RuntimeError, match="another"):
        main(["predict"])
