"""A memory of vectors, as many for each class: a ring of slots that is saved for resume."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aicsd.losses._ranks import ranks


class ClassMemory(nn.Module):
    """The last vectors of every class.

    Args:
        classes: C.
        slots: K, the number of vectors that a class keeps.
        channels: D, the length of a vector.

    The shapes of all tensors are known beforehand, so that a GPU never waits for a number.
    """

    vectors: Tensor
    """(C, K + 1, D); the last slot takes what is not kept, and holds 0."""
    written: Tensor
    """(C,) int64: how many vectors a class has got so far."""

    def __init__(self, classes: int, slots: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(classes, slots + 1, channels))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, new: Tensor, real: Tensor) -> None:
        """Keep the vectors of all processes in the place of the oldest.

        Args:
            new: (C, P, D).
            real: (C, P) bool; False where there is no vector.
        """
        new, real = _of_all_ranks(new), _of_all_ranks(real)
        slots = self.vectors.shape[1] - 1
        order = real.cumsum(dim=1)
        total = order[:, -1:]
        kept = real & (total - order < slots)
        place = torch.where(kept, (self.written[:, None] + order - 1) % slots, slots)
        rows = torch.arange(len(new), device=new.device)[:, None]
        kept_vectors = new.masked_fill(~kept[..., None], 0.0).to(self.vectors.dtype)
        self.vectors[rows, place] = kept_vectors
        self.written += total[:, 0]

    @torch.no_grad()
    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Random vectors, as many for each class, drawn with replacement.

        Returns:
            (C count, D), and (C count,) bool: False where the class has none yet.
        """
        filled = self.written.clamp_max(self.vectors.shape[1] - 1)[:, None]
        # drawn on the CPU, so that every device takes the same
        draws = torch.rand(len(self.vectors), count).to(filled.device)
        place = torch.minimum((draws * filled).long(), (filled - 1).clamp_min(0))
        rows = torch.arange(len(place), device=place.device)[:, None]
        return self.vectors[rows, place].flatten(0, 1), (filled > 0).expand_as(place).flatten()


def _of_all_ranks(values: Tensor) -> Tensor:
    """(C, P, ...) -> (C, P times processes, ...), the same in all of them."""
    number = ranks_of_training()
    if number == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(number)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts, dim=1)


def ranks_of_training() -> int:
    """Processes that train together, also with gradients off."""
    with torch.enable_grad():
        return ranks()
