"""Settings of the data of a training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aicsd.data.open import AUTO, DATASETS, GENERATED, MEMORY, PHOTOS_ONLY, find_name
from aicsd.errors import UserError

HELP_WORDS = {"datasets": ", ".join(DATASETS), "generated": GENERATED}
"""Text for ``{datasets}`` and ``{generated}`` in the help."""


@dataclass(frozen=True)
class AugmentConfig:
    """Data augmentation of training images. Set a value to 0 (scales: to 1) to switch it off."""

    crop: int = 512
    """side of the square training crop in pixels."""
    short_side: int = 0
    """shorter side of the image at scale 1 in pixels; 0 keeps the native size. 513 in the released
    code."""
    scale_min: float = 0.5
    """smallest random scale of the image, above 0."""
    scale_max: float = 2.0
    """largest random scale of the image."""
    flip: float = 0.5
    """probability of a horizontal flip, 0 to 1."""
    blur: float = 0.5
    """probability of a Gaussian blur with sigma up to 1 pixel, 0 to 1."""
    jitter: float = 0.0
    """strength of random brightness, contrast, saturation and hue, 0 to 1."""

    def __post_init__(self) -> None:
        if self.crop < 16:
            raise UserError(f"data.augment.crop is {self.crop}; it must be 16 or more")
        if self.short_side < 0:
            raise UserError(f"data.augment.short_side is {self.short_side}; it is 0 or more")
        if not 0 < self.scale_min <= self.scale_max:
            raise UserError(
                f"data.augment.scale_min {self.scale_min} and scale_max {self.scale_max} must "
                "satisfy 0 < scale_min <= scale_max"
            )
        for name in ("flip", "blur", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augment.{name} is {getattr(self, name)}; it is 0 to 1")


@dataclass(frozen=True)
class DataConfig:
    """Dataset, splits, augmentation and loading."""

    name: str = AUTO
    """{datasets}; auto: recognise the dataset from the root ({generated} without a root)."""
    root: str | None = None
    """folder of the dataset; {generated} needs none."""
    train_split: str = "train"
    """split to train on."""
    train_images: int = 0
    """number of its images to train on, spread evenly over the split; 0: all. Shows how much labels
    matter."""
    unlabelled_rest: bool = False
    """train on the other images of the split too, without their labels; the teacher provides a
    target there."""
    images: str | None = None
    """folder of photos without masks, or a video, to train on instead of a dataset: short for name
    photos and root. The student learns from the teacher alone, and is validated against the teacher
    on photos left out of training."""
    classes: str | None = None
    """file with the class names for images, one per line."""
    unlabelled: str | None = None
    """folder of additional photos without masks, or a video; the teacher provides a target
    there."""
    unlabelled_ratio: float = 0.0
    """unlabelled images in an epoch per labelled one; 0: each of them once."""
    labelled_repeat: int = 1
    """number of times that an epoch shows each labelled image if other images are unlabelled; with
    8, 50 labelled images make half of an epoch with 400 others."""
    val_split: str = "val"
    """split for validation during training."""
    batch_size: int = 8
    """images per step and process."""
    workers: int = 2
    """data-loading processes; 0 loads in the training process. The number does not change the
    result."""
    cache_mb: int = 0
    """memory in MB (10^6 bytes) for decoded training images, per device and shared by its workers;
    0 decodes every image each time. It does not change the result."""
    check: bool = True
    """before training, check that every mask has valid ids and the size of its image."""
    options: dict[str, Any] = field(default_factory=dict)
    """further options of the dataset, for example {size: 96} for {generated}."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """data augmentation of the training images."""

    @staticmethod
    def help_words() -> dict[str, str]:
        """Text for ``{word}`` in the help."""
        return HELP_WORDS

    def __post_init__(self) -> None:
        self._check_images()
        if self.name != MEMORY:
            find_name(self.name, self.root)
        if not 0 <= self.unlabelled_ratio < float("inf"):
            raise UserError(f"data.unlabelled_ratio is {self.unlabelled_ratio}; it is 0 or more")
        if self.batch_size < 1:
            raise UserError(f"data.batch_size is {self.batch_size}; it must be 1 or more")
        if self.train_images < 0:
            raise UserError(f"data.train_images is {self.train_images}; it must be 0 or more")
        if self.labelled_repeat < 1:
            raise UserError(f"data.labelled_repeat is {self.labelled_repeat}; it must be 1 or more")
        if self.unlabelled_rest and not self.train_images:
            raise UserError(
                "data.unlabelled_rest needs data.train_images, the number of images with labels"
            )
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}; it must be 0 or more")
        if self.cache_mb < 0:
            raise UserError(f"data.cache_mb is {self.cache_mb}; it must be 0 or more")

    def _check_images(self) -> None:
        if self.images is None and self.classes is not None:
            raise UserError("data.classes goes with data.images; a dataset names its own classes")
        if self.images is None:
            return
        for name, given in (("root", self.root), ("unlabelled", self.unlabelled)):
            if given is not None:
                raise UserError(
                    f"data.images is {self.images} and data.{name} is {given}; give one of them"
                )
        if self.name not in (AUTO, PHOTOS_ONLY):
            raise UserError(f"data.images has no masks, and data.name is {self.name!r}; give one")

    def named(self) -> DataConfig:
        """The same settings with the name and root of the dataset that they lead to."""
        if self.images is not None:
            named = {} if self.classes is None else {"classes": str(Path(self.classes).absolute())}
            return replace(
                self,
                name=PHOTOS_ONLY,
                root=self.images,
                images=None,
                classes=None,
                options={**named, **self.options},
            )
        return replace(self, name=find_name(self.name, self.root))
