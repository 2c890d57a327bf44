"""Settings of runs: which may differ when a run is resumed, and between runs that are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HARMLESS_KEYS = frozenset(
    (
        "resume",
        "run",
        "save_every",
        "log_every",
        "logger",
        "report_images",
        "data.root",
        "data.workers",
        "data.cache_mb",
        "data.check",
        "terms_of",
        "force_teacher",
        "in_benchmark",
    )
)
"""Keys of a config that a resumed run may change, because they do not change its result."""
UNIMPORTANT = HARMLESS_KEYS | {"seed", "accelerator", "teacher_runtime", "val_every", "cuda_graphs"}
"""Keys in which runs of one setting may differ."""
PROCESSES = ("data.batch_size", "devices", "num_nodes")
"""Keys that may change in a resumed run, if their product stays: the images of a batch."""
AGAINST_DIVERGENCE = (
    "optimizer.lr",
    "optimizer.clip",
    "optimizer.skip_nonfinite",
    "optimizer.warmup",
    "precision",
)
"""Keys that may change, with the weights of terms, when a run is resumed that had stopped because
its loss was not finite."""
OLD_KEYS = {"published_layout": "released_layout"}
"""Keys of a network that older versions had under another name -> the name."""


def against_divergence(key: str) -> bool:
    """Whether a (flat) key may change when a run is resumed whose loss was not finite."""
    return key in AGAINST_DIVERGENCE or (key.startswith("terms.") and key.endswith(".weight"))


def images_per_step(settings: Mapping[str, Any]) -> int | None:
    """Images of a batch over all processes; None if the (flat) settings lack a count."""
    counts = [count for key in PROCESSES if isinstance(count := settings.get(key), int)]
    return math.prod(counts) if len(counts) == len(PROCESSES) else None


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of an older version with the names that its keys have now."""
    found = dict(config)
    for section in ("model", "student"):
        if isinstance(found.get(section), Mapping):
            found[section] = {OLD_KEYS.get(key, key): v for key, v in found[section].items()}
    return found


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
