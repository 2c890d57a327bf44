"""Guard of a refactoring: short runs of every method must give bit-identical weights.

    python scripts/same_weights.py record HASHES.json
    python scripts/same_weights.py compare HASHES.json

Each run trains a few steps on the digits, with the standard and the released protocol, with a
teacher cache, an average of the weights and accumulated gradients. The hashes depend on the
processor and the version of PyTorch: record and compare on one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import aicsd

METHODS = ("none", "kd", "icsd", "aicsd", "ad", "sp", "ickd")
NETWORK: dict[str, Any] = {
    "backbone": "mobilenetv2_035",
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
}
DATA: dict[str, Any] = {
    "name": "digits",
    "options": {"size": 64, "scenes": 16},
    "batch_size": 4,
    "workers": 0,
    "augment": {"crop": 64},
}
COMMON: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "logger": "none", "val_every": 0}


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of every distillation."""
    for protocol in ("standard", "released"):
        for method in METHODS:
            yield f"{method} {protocol}", {"method": method, "protocol": protocol}
    yield "aicsd average", {"optimizer": {"ema": 0.5, "accumulate": 2, "clip": 1.0}}
    yield "aicsd cache", {"teacher_cache": "cache"}
    yield "aicsd adamw", {"optimizer": {"name": "adamw", "lr": 0.001, "schedule": "cosine"}}


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The weights of all runs."""
    torch.set_num_threads(1)
    teacher = aicsd.train(NETWORK, DATA, folder / "teacher", **COMMON)
    found = {"teacher": digest(teacher.student.state_dict())}
    for number, (name, options) in enumerate(variants()):
        if "teacher_cache" in options:
            options = {**options, "teacher_cache": str(folder / options["teacher_cache"])}
        run = aicsd.distill(
            folder / "teacher", NETWORK, DATA, run=folder / str(number), **COMMON, **options
        )
        found[name] = digest(run.student.state_dict())
    return found


def main() -> None:
    action, path = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        found = hashes(Path(folder))
    if action == "record":
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} runs recorded in {path}")
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(name for name in recorded if recorded[name] != found.get(name))
    for name in different:
        print(f"{name}: {recorded[name][:12]} became {str(found.get(name))[:12]}")
    print(f"{len(recorded) - len(different)} of {len(recorded)} runs have the same weights")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
