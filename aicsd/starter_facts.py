"""Facts that a first config depends on: the images of a dataset, and this machine."""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from aicsd.data.check import Survey, survey
from aicsd.data.open import image_paths
from aicsd.errors import UserError

UNLABELLED = "unlabelled"


class Machine(NamedTuple):
    """Resources of this machine for a training."""

    cores: int
    memory_gb: float | None
    """Main memory; None if unknown."""
    gpu: str | None = None
    """Name of the first GPU."""
    gpu_memory_gb: float = 0.0
    bfloat16: bool = False
    """Whether the GPU computes in bfloat16."""

    @property
    def kind(self) -> str:
        """``gpu`` or ``cpu``."""
        return "cpu" if self.gpu is None else "gpu"


class Facts(NamedTuple):
    """Properties of a dataset."""

    sizes: Counter[tuple[int, int]]
    """(H, W) of the training images, and how many have it."""
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    """Labelled pixels of every class in the training images."""
    unlabelled: int = 0
    """Images of the split ``unlabelled``."""

    @property
    def images(self) -> int:
        """Training images with labels."""
        return sum(self.sizes.values())

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        sides = sorted(min(size) for size in self.sizes.elements())
        return sides[len(sides) // 2]


def read_facts(name: str, root: str) -> Facts:
    """Properties of the training images of a dataset.

    Raises:
        UserError: naming the first file that cannot be used.
    """
    found = {split: survey(name, root, split, decode_images=False) for split in ("train", "val")}
    for split, result in found.items():
        problems = [*result.problems, *(f"{split}: {line}" for line in result.refusals)]
        if problems:
            raise UserError(f"{problems[0]} (aicsd data check --data.root {root} lists all)")
    train: Survey = found["train"]
    if train.images < 2:
        raise UserError(f"{root} has {train.images} training image; 2 or more are needed")
    try:
        unlabelled = len(image_paths(name, root, UNLABELLED))
    except UserError:
        unlabelled = 0  # most datasets have no such split
    return Facts(train.sizes, train.classes, train.pixels, unlabelled)


def this_machine() -> Machine:
    """Cores, memory and the first GPU of this machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):  # not on Windows
        memory = None
    if not torch.cuda.is_available():
        return Machine(cores or 1, memory)
    properties = torch.cuda.get_device_properties(0)
    return Machine(
        cores or 1,
        memory,
        properties.name,
        properties.total_memory / 1e9,
        torch.cuda.is_bf16_supported(),
    )
