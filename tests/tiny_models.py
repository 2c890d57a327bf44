"""A tiny untrained network that sees every class, and images for it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from conftest import CLASS_NAMES, TINY_MODEL
from torch import nn

from aicsd.data import Classes
from aicsd.models import ModelConfig, build_model, save_model

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
VIDEO_RATE = Fraction(30000, 1001)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def save_tiny_model(path: Path) -> Path:
    """The logits of every class are spread alike on an image of :func:`noise`."""
    torch.manual_seed(1)
    model = build_model(ModelConfig(**TINY_MODEL), CLASSES).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(noise(64, 48)).permute(2, 0, 1)[None]).logits
        scale, middle = logits.std(dim=(0, 2, 3)), logits.mean(dim=(0, 2, 3))
        head = model.net.get_submodule("classifier")
        assert isinstance(head, nn.Conv2d)
        assert head.bias is not None
        head.weight /= scale[:, None, None, None]
        head.bias.sub_(middle).div_(scale)
    save_model(model, path)
    return path


def make_video(path: Path, size: tuple[int, int], times: list[int]) -> list[np.ndarray]:
    """A lossless video with a frame at each of ``times``, counted in frames of ``VIDEO_RATE``."""
    import av

    frames = [noise(*size, seed) for seed in range(len(times))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=VIDEO_RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, 1 / VIDEO_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return frames
