"""Training images per second of one core: PIL as published, torchvision, and the package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image as PILImage
from sklearn.datasets import load_sample_images

from aicsd.data.batches import TrainBatches
from aicsd.data.file_dataset import FileDataset, Pair
from aicsd.data.loaders import train_loader
from aicsd.data.memory import CachedDataset
from aicsd.data.protocol import Classes, SegDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.models.input_spec import IMAGENET_MEAN, IMAGENET_STD
from aicsd.types import Batch
from benchmarks.baselines import pil_training_sample, torchvision_training_sample
from benchmarks.common import fastest, report

CLASSES = Classes(tuple(f"class {number}" for number in range(21)), ((0, 0, 0),) * 21)
COUNT = 48
BATCH_SIZE = 8
SEED = 0
MEAN = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


def write_dataset(folder: Path, width: int, height: int, quality: int = 95) -> list[Pair]:
    """Cuts of real photos as JPEG, with masks of their coarse colours: palette and grey PNG."""
    rng = np.random.default_rng(SEED)
    photos = load_sample_images().images
    pairs = []
    for number in range(COUNT):
        photo = photos[number % 2]
        factor = max(1.0, width / photo.shape[1], height / photo.shape[0])
        photo = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        top = int(rng.integers(0, photo.shape[0] - height + 1))
        left = int(rng.integers(0, photo.shape[1] - width + 1))
        cut = np.ascontiguousarray(photo[top : top + height, left : left + width])
        smooth = cv2.blur(cut, (31, 31))
        levels = (smooth[..., 0] // 86) * 7 + (smooth[..., 1] // 86) * 2 + smooth[..., 2] // 128
        mask = PILImage.fromarray(levels.astype(np.uint8))
        if number % 4 < 2:
            mask.putpalette([level for level in range(256) for _ in range(3)])
        image_file, mask_file = folder / f"{number}.jpg", folder / f"{number}.png"
        PILImage.fromarray(cut).save(image_file, quality=quality)
        mask.save(mask_file)
        pairs.append(Pair(image_file, mask_file))
    return pairs


def batches(dataset: SegDataset) -> list[Batch]:
    """One epoch in this process, as a training reads it."""
    augment = AugmentConfig(crop=513, short_side=513)
    config = DataConfig(batch_size=BATCH_SIZE, workers=0, augment=augment)
    plan = TrainBatches(len(dataset), BATCH_SIZE, SEED, 0, len(dataset) // BATCH_SIZE)
    return list(train_loader(dataset, config, plan))


def normalized(found: list[Batch]) -> None:
    """Work on a batch on the model's device; here it shares this core."""
    for batch in (each.to("cpu") for each in found):
        (batch.image.float() / 255).sub_(MEAN).div_(STD)


def decoding(folder: Path) -> dict[str, float]:
    """Seconds to decode a JPEG of 2048x1024, whole and by OpenCV at half its size."""
    data = np.fromfile(write_dataset(folder, 2048, 1024)[0].image, np.uint8)
    return fastest(
        {
            "whole": lambda: cv2.imdecode(data, cv2.IMREAD_COLOR),
            "half": lambda: cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_2),
        }
    )


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_dataset(folder, 500, 375)
        dataset = FileDataset(pairs, CLASSES)
        cached = CachedDataset(dataset, 100, shared=False)

        def each(load: Callable[..., object], *arguments: object) -> None:
            samples = [load(*pair, *arguments) for pair in pairs]
            for start in range(0, COUNT, BATCH_SIZE):
                torch.utils.data.default_collate(samples[start : start + BATCH_SIZE])

        candidates: dict[str, Callable[[], object]] = {
            "PIL, as released": lambda: each(pil_training_sample, np.random.default_rng(SEED)),
            "torchvision transforms v2": lambda: each(torchvision_training_sample),
            "aicsd, normalised on the same core": lambda: normalized(batches(dataset)),
            "aicsd (uint8; the model's device normalises)": lambda: batches(dataset),
            "aicsd, decoded images in memory (`data.cache_mb`)": lambda: batches(cached),
        }
        seconds = fastest(candidates, repeats=12)
        large = decoding(folder)
    rates = {name: COUNT / value for name, value in seconds.items()}
    slowest = rates["PIL, as released"]
    rows = [[name, f"{rate:.0f}", f"{rate / slowest:.1f}"] for name, rate in rates.items()]
    figures = {"images_per_second": rates, "decode_2048x1024_seconds": large}
    report("data", figures, ("pipeline, one core", "images/s", "times PIL"), rows)
    print(f"2048x1024 JPEG: {1e3 * large['whole']:.1f} ms whole, {1e3 * large['half']:.1f} ms half")


if __name__ == "__main__":
    main()
