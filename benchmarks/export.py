"""Latency of exported models at batch 1 on one and two threads: every runtime, float and INT8.

The network is the CamVid student; its weights are random, on which the time does not depend.
Formats whose libraries are not installed are left out. Each model runs in a process of its own,
since the threads of one runtime would spin while the next is timed; the processes take turns.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.errors import UserError
from aicsd.exporting import Output, export_model
from aicsd.formats import FORMATS, Format, format_of
from aicsd.models import (
    ModelConfig,
    Segmenter,
    build_model,
    class_ids,
    load_model,
    resize,
    save_model,
)
from benchmarks.common import fastest, report

SIDE = 512
REPEATS = 20
ROUNDS = 3
THREADS = (1, 2)
VARIANTS: tuple[tuple[str, Output, bool], ...] = (
    ("logits", "logits", False), ("labels", "labels", False), ("labels, INT8", "labels", True),
)  # fmt: skip
CLASSES = Classes(tuple(f"class {number}" for number in range(11)), ((0, 0, 0),) * 11)
STUDENT = ModelConfig("mobilenetv2_050", aspp_channels=64, decoder_channels=64)


class Noise(SegDataset):
    """Images to calibrate on."""

    def __init__(self, classes: Classes, side: int) -> None:
        self.classes, self.side = classes, side
        self.names = [f"{number}" for number in range(4)]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (self.side, self.side, 3), np.uint8)
        return Sample(image, np.zeros((self.side, self.side), np.uint8))


def installed(known: Format) -> bool:
    """Whether a format can be written and run here, INT8 included."""
    needed = (*known.libraries, *known.int8_libraries)
    here = all(importlib.util.find_spec(library) is not None for library in needed)
    return here and known.runs() and known.trusted is None


def export_all(
    model: Segmenter, place: Path, formats: Sequence[Format], side: int
) -> dict[str, Path]:
    """Name of a row -> file."""
    files = {}
    for known in formats:
        for name, output, int8 in VARIANTS:
            path = place / f"{name.replace(', ', '-')}{known.suffix}"
            noise = Noise(model.classes, side) if int8 else None
            try:
                export_model(model, path, output, noise, (side, side) if known.one_size else None)
            except UserError as error:
                print(f"{known.title}, {name}: left out, {error}", file=sys.stderr)
            else:
                files[f"{known.title}: {name}"] = path
    return files


def seconds_of(path: Path, labels: bool, threads: int, side: int, repeats: int) -> float:
    """Shortest time from pixels to what a file gives, or PyTorch: logits or labels of an image."""
    torch.set_num_threads(threads)
    image = Noise(CLASSES, side).read(0).image[None]
    if path.suffix != ".safetensors":
        run = format_of(path).read(path, threads).run
        return fastest({"file": lambda: run(image)}, repeats)["file"]
    model = load_model(path)

    @torch.inference_mode()
    def eager() -> np.ndarray:
        logits = model(torch.from_numpy(image).permute(0, 3, 1, 2)).logits
        size, aligned = (side, side), model.align_corners
        found = class_ids(logits, size, aligned) if labels else resize(logits, size, aligned)
        return found.numpy()

    return fastest({"eager": eager}, repeats)["eager"]


def in_a_process(path: Path, labels: bool, threads: int) -> float:
    arguments = [str(path), str(int(labels)), str(threads)]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.export", *arguments], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return float(found.stdout.split()[-1])


def main() -> None:
    torch.manual_seed(0)
    model = build_model(STUDENT, CLASSES).eval()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        save_model(model, place / "model.safetensors")
        plain = place / "model.safetensors"
        files = {"PyTorch, eager: logits": plain, "PyTorch, eager: labels": plain}
        files |= export_all(model, place, [known for known in FORMATS if installed(known)], SIDE)
        cases = [(name, threads) for name in files for threads in THREADS]
        seconds = dict.fromkeys(cases, float("inf"))
        for _ in range(ROUNDS):
            for name, threads in cases:
                found = in_a_process(files[name], name.endswith("labels"), threads)
                seconds[name, threads] = min(seconds[name, threads], found)
        sizes = {name: _bytes(path) for name, path in files.items()}
    baselines = {threads: seconds["PyTorch, eager: labels", threads] for threads in THREADS}
    rows = [
        [*name.split(": "), *(f"{1000 * seconds[name, threads]:.1f}" for threads in THREADS),
         *(f"{baselines[threads] / seconds[name, threads]:.2f}" for threads in THREADS),
         f"{sizes[name] / 1e6:.1f}"]
        for name in files
    ]  # fmt: skip
    figures = {
        "shape": [1, SIDE, SIDE, 3], "bytes": sizes,
        "seconds": {name: {str(t): seconds[name, t] for t in THREADS} for name in files},
    }  # fmt: skip
    header = ["run by", "gives", "ms, 1 thread", "ms, 2 threads", "times eager labels, 1",
              "the same, 2", "MB"]  # fmt: skip
    report("export", figures, header, rows)


def _bytes(path: Path) -> int:
    if path.suffix == ".safetensors":
        return path.stat().st_size
    return format_of(path).bytes(path)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(seconds_of(Path(sys.argv[1]), sys.argv[2] == "1", int(sys.argv[3]), SIDE, REPEATS))
    else:
        main()
