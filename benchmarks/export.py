"""Latency of exported models at batch 1 on one and two threads: every runtime, float and INT8.

The network is the CamVid student; its weights are random, on which the time does not depend.
Formats whose libraries are not installed are left out. ``python -m benchmarks.export FOLDER`` keeps
the files, and uses those that are there.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.errors import UserError
from aicsd.exporting import Output, export_model
from aicsd.formats import FORMATS, Format, format_of
from aicsd.images import UInt8Array
from aicsd.models import (
    ModelConfig,
    Segmenter,
    build_model,
    class_ids,
    load_model,
    resize,
    save_model,
)
from benchmarks.common import report

Run = Callable[[], object]
SIDE = 512
REPEATS = 20
REST = 0.02
"""Seconds before each pass, so that the threads of the runtime before it no longer spin."""
THREADS = (1, 2)
VARIANTS: tuple[tuple[str, Output, bool], ...] = (
    ("logits", "logits", False),
    ("labels", "labels", False),
    ("labels, INT8", "labels", True),
)
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
                if not path.exists():
                    size = (side, side) if known.one_size else None
                    export_model(model, path, output, noise, size)
            except UserError as error:
                print(f"{known.title}, {name}: left out, {error}", file=sys.stderr)
            else:
                files[f"{known.title}: {name}"] = path
    return files


def candidates(files: Mapping[str, Path], threads: int, side: int) -> dict[str, Run]:
    """Name of a row -> what is timed: from the pixels of an image to what the file gives."""
    image = Noise(CLASSES, side).read(0).image[None]
    found: dict[str, Run] = {}
    for name, path in files.items():
        if path.suffix == ".safetensors":
            found[name] = partial(eager, load_model(path), image, "labels" in name)
        else:
            found[name] = partial(format_of(path).read(path, threads).run, image)
    return found


@torch.inference_mode()
def eager(model: Segmenter, image: UInt8Array, labels: bool) -> None:
    """PyTorch from pixels to logits or labels of the image's size."""
    logits = model(torch.from_numpy(image).permute(0, 3, 1, 2)).logits
    height, width = image.shape[1:3]
    (class_ids if labels else resize)(logits, (height, width), model.align_corners)


def seconds_of(
    files: Mapping[str, Path], threads: int, side: int, repeats: int
) -> dict[str, float]:
    """Shortest time of each, taking turns; between them, the threads of the last come to rest."""
    torch.set_num_threads(threads)
    runs = candidates(files, threads, side)
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(REST)
            begin = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def in_a_process(files: Mapping[str, Path], threads: int) -> dict[str, float]:
    """``seconds_of`` where no other runtime has set a number of threads."""
    rows = {name: str(path) for name, path in files.items()}
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.export", json.dumps(rows), str(threads)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return seconds


def main(place: Path) -> None:
    """Export into a folder, in which files of an earlier call are used again, and time."""
    torch.manual_seed(0)
    model = build_model(STUDENT, CLASSES).eval()
    place.mkdir(exist_ok=True)
    plain = place / "model.safetensors"
    save_model(model, plain)
    files = {"PyTorch, eager: logits": plain, "PyTorch, eager: labels": plain}
    files |= export_all(model, place, [known for known in FORMATS if installed(known)], SIDE)
    seconds = {threads: in_a_process(files, threads) for threads in THREADS}
    sizes = {name: _bytes(path) for name, path in files.items()}
    baselines = {threads: seconds[threads]["PyTorch, eager: labels"] for threads in THREADS}
    rows = [
        [
            *name.split(": "),
            *(f"{1000 * seconds[threads][name]:.1f}" for threads in THREADS),
            *(f"{baselines[threads] / seconds[threads][name]:.2f}" for threads in THREADS),
            f"{sizes[name] / 1e6:.1f}",
        ]
        for name in files
    ]
    figures = {"shape": [1, SIDE, SIDE, 3], "bytes": sizes, "seconds": seconds}
    header = [
        "run by",
        "gives",
        "ms, 1 thread",
        "ms, 2 threads",
        "times as fast as eager labels",
        "the same, 2 threads",
        "MB",
    ]
    report("export", figures, header, rows)


def _bytes(path: Path) -> int:
    if path.suffix == ".safetensors":
        return path.stat().st_size
    return format_of(path).bytes(path)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        paths = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
        print(json.dumps(seconds_of(paths, int(sys.argv[2]), SIDE, REPEATS)))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder))
