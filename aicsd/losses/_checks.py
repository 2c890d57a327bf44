"""What every loss on two maps needs: matching shapes, a safe precision, pixels inside the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be above 0")


def prepare_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse what cannot be compared; detach the teacher; bring both to one safe precision."""
    if student.dim() != 4 or teacher.dim() != 4 or student.shape != teacher.shape:
        hint = ""
        if student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]:
            hint = ": resize one of them with torch.nn.functional.interpolate"
        raise UserError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            f"must have one shape (B, C, H, W){hint}"
        )
    student, teacher = to_safe_precision(student), to_safe_precision(teacher.detach())
    return student, teacher.to(student.dtype)


def to_safe_precision(logits: Tensor) -> Tensor:
    """float64 stays; everything smaller is computed in float32, where sums of exponentials hold."""
    return logits if logits.dtype == torch.float64 else logits.float()


def match_inside(inside: Tensor | None, logits: Tensor) -> Tensor | None:
    """(B, H', W') bool -> (B, H, W) bool at the size of ``logits`` (nearest pixel)."""
    if inside is None:
        return None
    if inside.dim() != 3 or inside.shape[0] != logits.shape[0]:
        raise UserError(
            f"inside {tuple(inside.shape)} must be (B, H, W) with the batch of logits "
            f"{tuple(logits.shape)}"
        )
    size = logits.shape[-2:]
    if inside.shape[-2:] != size:
        inside = F.interpolate(inside[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
    return inside.bool()
