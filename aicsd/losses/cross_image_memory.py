"""Relations to pixels and regions of earlier images (Yang et al., CIRKD, arXiv 2204.06986)."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.losses._checks import (
    check_sizes,
    check_temperature,
    check_weights,
    match_mask,
    match_valid,
    prepare_pair,
    without_autocast,
)
from aicsd.losses._directions import directions, pixel_directions
from aicsd.losses._memory import ClassMemory
from aicsd.losses._module import LossModule
from aicsd.losses._ranks import shared_count
from aicsd.types import IGNORE_INDEX

NEW_PIXELS = 16
"""Pixels of a class that an image gives to the memory at most, as in the released code."""


def cross_image_memory_loss(
    student: Tensor,
    teacher: Tensor,
    keys: Tensor,
    known: Tensor,
    *,
    temperature: float = 0.1,
    valid: Tensor | None = None,
) -> Tensor:
    """mean_m KL(s^T_m || s^S_m), s_m = softmax over the keys k of f_m . k / T.

    Args:
        student: (B, D, H, W) features; the only input that gets a gradient.
        teacher: (B, D, H, W) features.
        keys: (K, D) vectors of length 1 that the teacher has had.
        known: (K,) bool; False where there is no key.
        temperature: T > 0.
        valid: (B, H', W') bool; padding (False) takes no part.

    Returns:
        Unweighted scalar >= 0; 0 where the similarities agree, where nothing is valid, and without
        any key.

    Raises:
        UserError: shapes that differ, or a bad temperature.
    """
    check_temperature(temperature)
    student, teacher = prepare_pair(student, teacher)
    where = match_valid(valid, student)
    missing = ~known & known.any()
    logs = []
    for maps in (student, teacher):
        with without_autocast(maps):
            cosines = pixel_directions(maps) @ keys.to(maps.dtype).T  # (B, H W, K)
        scores = (cosines / temperature).masked_fill(missing, float("-inf"))
        logs.append(scores.log_softmax(dim=2).masked_fill(missing, 0.0))
    by_pixel = F.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(dim=2)
    by_pixel = by_pixel.masked_fill(~known.any(), 0.0)
    if where is None:
        return by_pixel.mean()
    where = where.flatten(1)
    return by_pixel.masked_fill(~where, 0.0).sum() / shared_count(where.sum())


@dataclass(eq=False, repr=False)
class CrossImageMemoryLoss(LossModule):
    """pixels L(random pixels of the memory) + regions L(random regions of it).

    L is :func:`cross_image_memory_loss`. The memory holds directions of the teacher's features, as
    many for each class: of single pixels, up to 16 of a class and image, and of the mean over a
    class in an image. In training, the labelled pixels of the batch (of all processes) enter it
    before the comparison. It belongs to the state of the loss.

    Args:
        pixels: weight of the comparison with pixels, 0 or above.
        regions: weight of the comparison with regions, 0 or above.
        temperature: T > 0.
        pixel_slots: pixels that the memory keeps of each class.
        region_slots: regions that it keeps of each class.
        pixel_keys: about how many pixels are drawn in a step, over all classes.
        region_keys: about how many regions.
        ignore_index: id of unlabelled pixels.
    """

    teacher_channels: InitVar[int]
    num_classes: InitVar[int]
    pixels: float = 1.0
    regions: float = 1.0
    temperature: float = 0.1
    pixel_slots: int = 1000
    region_slots: int = 500
    pixel_keys: int = 1024
    region_keys: int = 512
    ignore_index: int = IGNORE_INDEX

    needs: ClassVar = "features"

    def __post_init__(self, teacher_channels: int, num_classes: int) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_weights(pixels=self.pixels, regions=self.regions)
        check_sizes(pixel_slots=self.pixel_slots, region_slots=self.region_slots)
        check_sizes(pixel_keys=self.pixel_keys, region_keys=self.region_keys)
        self.classes = num_classes
        self.pixel_memory = ClassMemory(num_classes, self.pixel_slots, teacher_channels)
        self.region_memory = ClassMemory(num_classes, self.region_slots, teacher_channels)

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Two maps (B, D, H, W) and (B, H, W) labels -> scalar."""
        student, teacher = prepare_pair(student, teacher)
        where = match_valid(valid, student)
        if self.training:
            self.remember(teacher, match_mask(mask, student).long(), where)
        parts = []
        for memory, keys in self._draws():
            found = memory.sample(-(-keys // self.classes))
            parts.append(
                cross_image_memory_loss(
                    student, teacher, *found, temperature=self.temperature, valid=where
                )
            )
        return self.pixels * parts[0] + self.regions * parts[1]

    def _draws(self) -> list[tuple[ClassMemory, int]]:
        return [(self.pixel_memory, self.pixel_keys), (self.region_memory, self.region_keys)]

    @torch.no_grad()
    def remember(self, teacher: Tensor, labels: Tensor, where: Tensor | None) -> None:
        """Add the labelled pixels and regions of a batch.

        Args:
            teacher: (B, D, H, W).
            labels: (B, H, W) class ids or ``ignore_index``.
            where: (B, H, W) bool, or None for everywhere.
        """
        pixels = pixel_directions(teacher)  # B N D
        classes = torch.arange(self.classes, device=labels.device)[:, None]
        of_class = labels.flatten(1)[:, None] == classes  # B C N
        of_class &= (labels != self.ignore_index).flatten(1)[:, None]
        if where is not None:
            of_class &= where.flatten(1)[:, None]
        # each pixel draws a number above 0: the highest of a class are a random choice of it
        draws = 1 - torch.rand(labels.flatten(1).shape).to(labels.device)
        chosen = (draws[:, None] * of_class).topk(min(NEW_PIXELS, draws.shape[1]), dim=2)
        rows = torch.arange(len(teacher), device=labels.device)[:, None, None]
        self.pixel_memory.add(
            pixels[rows, chosen.indices].transpose(0, 1).flatten(1, 2),
            (chosen.values > 0).transpose(0, 1).flatten(1, 2),
        )
        with without_autocast(teacher):
            sums = of_class.to(pixels.dtype) @ pixels  # B C D
        regions = directions(sums, dim=2)
        self.region_memory.add(regions.transpose(0, 1), of_class.any(dim=2).T)


LOSS = CrossImageMemoryLoss
