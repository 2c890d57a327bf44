"""Latency of exported models at batch 1: eager PyTorch, ONNX Runtime and OpenVINO, float and INT8.

The network is the CamVid student; its weights are random, on which the time does not depend.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.export import export_model
from aicsd.models import ModelConfig, build_model, resize
from aicsd.models.exported import load_exported
from benchmarks.common import fastest, report

SIDE = 512
CLASSES = Classes(tuple(f"class {number}" for number in range(11)), ((0, 0, 0),) * 11)
STUDENT = ModelConfig("mobilenetv2_050", aspp_channels=64, decoder_channels=64)
FILES = {
    "ONNX Runtime": "float.onnx",
    "ONNX Runtime, INT8": "int8.onnx",
    "OpenVINO": "float.xml",
    "OpenVINO, INT8": "int8.xml",
}


class Noise(SegDataset):
    """Images to calibrate on."""

    def __init__(self) -> None:
        self.classes = CLASSES
        self.names = [f"{number}" for number in range(4)]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return Sample(image, np.zeros((SIDE, SIDE), np.uint8))


def main() -> None:
    torch.set_num_threads(1)  # the pool of one runtime would spin while the next is timed
    torch.manual_seed(0)
    model = build_model(STUDENT, CLASSES).eval()
    image = Noise().read(0).image[None]

    @torch.inference_mode()
    def eager() -> np.ndarray:
        logits = model(torch.from_numpy(image).permute(0, 3, 1, 2)).logits
        return resize(logits, (SIDE, SIDE), model.align_corners).numpy()

    candidates = {"PyTorch, eager": eager}
    sizes = {"PyTorch, eager": sum(p.numel() * p.element_size() for p in model.parameters())}
    with TemporaryDirectory() as folder:
        for name, file in FILES.items():
            path = Path(folder) / file
            export_model(model, path, calibration=Noise() if "int8" in file else None)
            run: Any = load_exported(path).run
            candidates[name] = partial(run, image)
            held = path if path.suffix == ".onnx" else path.with_suffix(".bin")
            sizes[name] = held.stat().st_size
        seconds = fastest(candidates, repeats=30)
    baseline = seconds["PyTorch, eager"]
    rows = [
        [name, f"{1000 * taken:.1f}", f"{baseline / taken:.2f}", f"{sizes[name] / 1e6:.1f}"]
        for name, taken in seconds.items()
    ]
    figures = {"shape": [1, SIDE, SIDE, 3], "seconds": seconds, "bytes": sizes}
    report("export", figures, ["run by", "ms", "times as fast as eager", "weights, MB"], rows)


if __name__ == "__main__":
    main()
