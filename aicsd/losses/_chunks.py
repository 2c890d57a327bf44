"""Walk over the pixels of logit maps in chunks that stay in the processor's cache.

A loss on logits does some ten things with every element. One whole map after the other, each of
them waits for memory, and each result is a map to keep; chunk by chunk only the logits are read
and only their gradient is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**18
"""Logits in a chunk on a CPU: 1 MiB in float32, so that a cache holds a few results of its size."""
ACCELERATOR_ELEMENTS = 2**22
"""Elsewhere, where every operation costs a launch: 16 MiB, and few chunks."""
MIN_CHUNK_PIXELS = 256
LOWEST_SCORE = -60.0
"""exp(-60) is 1e-26: nothing beside the 1 that every sum here contains, in float64 too. Below -87,
float32 has only numbers without full precision, which processors handle a hundred times slower."""


def chunks(maps: Tensor, buffers: int, dtype: torch.dtype) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices that together cover the N pixels of (B, C, N) maps, each with work space.

    A compiler gets all pixels in one: it fuses operations itself, and would unroll the chunks.

    Yields:
        The slice of n pixels, and ``buffers`` tensors (B, C, n) of ``dtype``, the same every time:
        a new one for each chunk would cost more than what is done with it.
    """
    batch, channels, pixels = maps.shape
    elements = CACHE_ELEMENTS if maps.is_cpu else ACCELERATOR_ELEMENTS
    size = max(MIN_CHUNK_PIXELS, elements // max(1, batch * channels))
    if torch.compiler.is_compiling():
        size = pixels
    shape = (buffers, batch, channels, min(size, pixels))
    space = torch.empty(shape, dtype=dtype, device=maps.device)
    for begin in range(0, pixels, size):
        end = min(begin + size, pixels)
        yield slice(begin, end), list(space[..., : end - begin].unbind())


def powers_of(scores: Tensor, out: Tensor) -> Tensor:
    """exp of scores <= 0 of which the largest is 0."""
    return torch.clamp(scores, min=LOWEST_SCORE, out=out).exp_()
