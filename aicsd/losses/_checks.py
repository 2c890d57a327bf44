"""Shared checks of losses: matching shapes, a safe precision, labels and valid pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aicsd.errors import UserError

TEMPERATURES = (1e-3, 1e3)
"""Smallest and largest; beyond them float32 keeps no digit of what a softmax compares."""


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive, or leaves nothing to compare.

    Raises:
        UserError: it is outside :data:`TEMPERATURES`.
    """
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be above 0")
    low, high = TEMPERATURES
    if not low <= temperature <= high:
        raise UserError(f"temperature is {temperature}; it must be from {low:g} to {high:g}")


def check_smoothing(label_smoothing: float) -> None:
    """Refuse what leaves nothing of a label.

    Raises:
        UserError: a number outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing is {label_smoothing}; it is 0 or more and below 1")


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1.

    Raises:
        UserError: names the option.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} is {size}; it must be 1 or more")


def check_not_negative(**numbers: float) -> None:
    """Refuse a number that is below 0 or not finite.

    Raises:
        UserError: names the option.
    """
    for name, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise UserError(f"{name} is {number}; it is a number of 0 or above")


def check_weights(**weights: float) -> None:
    """Refuse weights of the parts of a loss that are negative, not finite or all 0.

    Raises:
        UserError: names the option or options.
    """
    check_not_negative(**weights)
    if not any(weights.values()):
        raise UserError(f"{' and '.join(weights)} are 0: nothing is compared")


def prepare_pair(
    student: Tensor, teacher: Tensor, *, same_channels: bool = True
) -> tuple[Tensor, Tensor]:
    """Refuse what cannot be compared; detach the teacher; bring both to one safe precision."""
    check_pair(student, teacher, same_channels=same_channels)
    student, teacher = to_safe_precision(student), to_safe_precision(teacher.detach())
    return student, teacher.to(student.dtype)


def check_pair(student: Tensor, teacher: Tensor, *, same_channels: bool = True) -> None:
    """Refuse maps that cannot be compared."""
    maps = student.dim() == teacher.dim() == 4
    fits = maps and student.shape[0] == teacher.shape[0]
    if same_channels:
        fits = fits and student.shape[1] == teacher.shape[1]
    if not fits or student.shape[2:] != teacher.shape[2:]:
        shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        wanted = (
            "must have one shape (B, C, H, W)"
            if same_channels
            else "must be maps (B, D, H, W) with the same B, H and W"
        )
        hint = ": resize one of them with torch.nn.functional.interpolate" if fits else ""
        raise UserError(f"{shapes} {wanted}{hint}")


def safe_precision(logits: Tensor) -> torch.dtype:
    """float64 stays; everything smaller is computed in float32, where sums of exponentials hold."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def to_safe_precision(logits: Tensor) -> Tensor:
    """The logits in their :func:`safe_precision`."""
    return logits.to(safe_precision(logits))


def without_autocast(maps: Tensor) -> torch.autocast:
    """A context in which products of ``maps`` keep its precision: autocast rounds to 16 bits."""
    return torch.autocast(maps.device.type, enabled=False)


def match_valid(valid: Tensor | None, logits: Tensor) -> Tensor | None:
    """(B, H', W') bool -> (B, H, W) bool at the size of ``logits``, or a map (nearest pixel)."""
    if valid is None:
        return None
    if valid.dim() != 3 or valid.shape[0] != logits.shape[0]:
        raise UserError(
            f"valid {tuple(valid.shape)} must be (B, H, W) with the batch of logits "
            f"{tuple(logits.shape)}"
        )
    size = logits.shape[-2:]
    if valid.shape[-2:] != size:
        valid = F.interpolate(valid[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
    return valid.bool()


def valid_pixels(valid: Tensor | None, logits: Tensor) -> Tensor:
    """:func:`match_valid`, with True everywhere where ``valid`` is None."""
    matched = match_valid(valid, logits)
    if matched is None:
        return logits.new_ones((len(logits), *logits.shape[2:]), dtype=torch.bool)
    return matched


def match_mask(mask: Tensor, logits: Tensor) -> Tensor:
    """(B, H', W') class ids -> (B, H, W) at the size of ``logits``, by nearest pixel."""
    if logits.dim() != 4 or mask.dim() != 3 or logits.shape[0] != mask.shape[0]:
        raise UserError(
            f"logits {tuple(logits.shape)} must be (B, C, H, W) and mask {tuple(mask.shape)} "
            "(B, H, W) with the same B"
        )
    if mask.shape[-2:] == logits.shape[-2:]:
        return mask
    return F.interpolate(mask[:, None].float(), size=logits.shape[-2:], mode="nearest")[:, 0]
