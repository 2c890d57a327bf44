"""Differences between the weights of a file and those of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

COUNTER = "num_batches"
"""Part of the key of a batch norm's counter, which no result depends on."""


def state_differences(
    expected: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    *,
    counters: bool = False,
    listed: int = 3,
) -> str:
    """Number and first keys of what is missing, unknown or of another shape; empty if nothing is.

    Args:
        expected: weights of the network.
        stored: weights of the file.
        counters: whether the counters of batch norms must be there too.
        listed: number of keys of each kind to name.
    """
    missing = [key for key in expected if key not in stored and (counters or COUNTER not in key)]
    unknown = [key for key in stored if key not in expected]
    wrong = [
        f"{key} is {tuple(stored[key].shape)}, needs {tuple(value.shape)}"
        for key, value in expected.items()
        if key in stored and stored[key].shape != value.shape
    ]
    kinds = ((missing, "keys missing"), (unknown, "keys unknown"), (wrong, "of another shape"))
    return "; ".join(f"{len(keys)} {what}: {shorten(keys, listed)}" for keys, what in kinds if keys)


def shorten(keys: Sequence[str], listed: int = 5) -> str:
    """The first of ``keys``, and how many more there are."""
    more = f", and {len(keys) - listed} more" if len(keys) > listed else ""
    return ", ".join(keys[:listed]) + more
