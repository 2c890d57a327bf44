"""Everything that an exact resume needs, in one file that is either whole or absent."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aicsd.errors import UserError
from aicsd.files import atomic_path

LAST = Path("checkpoints") / "last.pt"


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps done."""
    best_miou: float = -1.0
    seconds: float = 0.0
    """Spent training so far, over all resumes."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """Metrics of the teacher, measured before the first step."""


def save_checkpoint(run: Path, progress: Progress, states: dict[str, Any]) -> None:
    """Write ``checkpoints/last.pt``; ``states`` are state dicts by name."""
    with atomic_path(run / LAST) as temporary:
        try:
            torch.save({"progress": vars(progress), **states}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise UserError(f"cannot write {run / LAST}: {error}") from error


def load_checkpoint(run: Path) -> tuple[Progress, dict[str, Any]] | None:
    """What :func:`save_checkpoint` wrote, or None if the run has no checkpoint yet."""
    path = run / LAST
    if not path.is_file():
        return None
    try:
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**states.pop("progress")), states
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}); delete it to start the run again"
        ) from error
