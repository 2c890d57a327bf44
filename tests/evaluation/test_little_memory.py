"""Evaluation where memory is small, and of images of many sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
START = f"""
import resource, sys
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
import torch
from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError
from aicsd.evaluation import evaluate
from aicsd.models import InferenceConfig
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


def run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", START + program],
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
def test_too_little_memory() -> None:
    """One line, or windows where no option can set them; batches give way to single images."""
    refused, cut, hopeless = run(LIMITED)
    assert refused.startswith("not enough memory for 1 x 2048x2048 pixels at once;")
    assert refused.endswith("cut large images with --window 1025, or less")
    assert cut == "not enough memory for 2048x2048 pixels at once: windows of 1025, one by one"
    assert hopeless.startswith("not enough memory for an image of 2048x2048 pixels, not even in")
