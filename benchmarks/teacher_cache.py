"""A training step with the teacher, with its cache, and without either.

    python -m benchmarks.teacher_cache

Everything runs in one process and thread, so that a step holds its whole price: reading and
augmenting the images, the crops of the stored logits, the networks, the losses and the optimizer.
Networks, crops and batches are those of ``aicsd/configs/camvid``; the images are noise of CamVid's
size and the weights random, which changes no time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from aicsd.config import build_config
from aicsd.data import open_dataset
from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import train_loader
from aicsd.data.protocol import SegDataset
from aicsd.data.settings import DataConfig
from aicsd.distiller import Distiller
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, build_model
from aicsd.run_config import DistillConfig
from aicsd.teacher import Teacher
from aicsd.teacher.cache import TeacherCache
from aicsd.types import Batch
from benchmarks.common import REPOSITORY, fastest, report, training_step

IMAGES = 32
SIZE = (360, 480)
TOP_K = 4
CONFIGS = REPOSITORY / "aicsd" / "configs" / "camvid"


def write_data(root: Path) -> SegDataset:
    """Smooth noise, which packs and unpacks as photographs do, with 11 classes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(f"class {number}" for number in range(11)))
    for number in range(IMAGES):
        noise = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        blurred = cv2.GaussianBlur(noise, (0, 0), 2)
        image = cv2.normalize(blurred, np.zeros_like(blurred), 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(root / "images" / "train" / f"{number}.png"), image)
        mask = cv2.resize(
            rng.integers(0, 11, (9, 12), dtype=np.uint8),
            SIZE[::-1],
            interpolation=cv2.INTER_NEAREST,
        )
        cv2.imwrite(str(root / "masks" / "train" / f"{number}.png"), mask)
    return open_dataset("folder", str(root), "train")


def read_config(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return content


def loaded(images: SegDataset, config: DataConfig) -> Iterator[Batch]:
    """The same few batches again and again, each read when it is taken."""
    settings = replace(config, workers=0)
    for number in cycle(range(IMAGES // settings.batch_size)):
        plan = TrainBatches(IMAGES, settings.batch_size, 0, number, number + 1)
        yield from train_loader(images, settings, plan)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    config = build_config(DistillConfig, {**read_config("aicsd.yaml"), "run": "unused"})
    large = ModelConfig(**{**read_config("teacher.yaml")["model"], "weights": "none"})
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data")
        teacher = Teacher(build_model(large, data.classes), data.classes)
        began = time.perf_counter()
        cached = TeacherCache(Path(folder) / "all", 0).attach(data, teacher, 0)
        built = time.perf_counter() - began
        again = time.perf_counter()
        TeacherCache(Path(folder) / "all", 0).attach(data, teacher, 0)
        opened = time.perf_counter() - again
        few = TeacherCache(Path(folder) / "few", TOP_K).attach(data, teacher, 0)
        sizes = {
            name: (Path(folder) / name / "logits.bin").stat().st_size / IMAGES
            for name in ("all", "few")
        }

        # the form in which a training without a cache runs it
        teacher.speed_up("eager", config.data.augment.crop)

        def step_of(method: str, images: SegDataset) -> Callable[[], object]:
            torch.manual_seed(0)
            student = build_model(config.student, data.classes)
            distiller = Distiller(student, load_recipe(method), teacher)
            return training_step(distiller, config.optimizer, loaded(images, config.data))

        candidates = {
            "student alone": step_of("none", data),
            "KD, teacher running": step_of("kd", data),
            "KD, cache": step_of("kd", cached),
            f"KD, cache of the {TOP_K} largest": step_of("kd", few),
            "AICSD, teacher running": step_of("aicsd", data),
            "AICSD, cache": step_of("aicsd", cached),
        }
        # every candidate sees each of the batches twice
        seconds = fastest(candidates, repeats=8)
    alone = seconds["student alone"]
    rows = [[name, f"{1000 * s:.0f}", f"{s / alone:.2f}"] for name, s in seconds.items()]
    figures = {
        "seconds": seconds,
        "build_seconds_per_image": built / IMAGES,
        "open_seconds_per_image": opened / IMAGES,
        "bytes_per_image": sizes,
    }
    report("teacher_cache", figures, ["training", "ms a step", "student alone = 1"], rows)


if __name__ == "__main__":
    main()
