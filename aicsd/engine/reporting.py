"""Progress bar, metrics.jsonl and the chosen trackers of a run."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from aicsd.engine.trackers import Tracker
from aicsd.errors import UserError
from aicsd.files import read_json_lines, write_text
from aicsd.images import UInt8Array
from aicsd.methods import Recipe
from aicsd.runs import RunFolder
from aicsd.terminal import progress_bar


class RunLogger:
    """Writes the logs of a run; on other ranks than the first it does nothing.

    Args:
        run: the run folder.
        start: step that the run starts from; lines of later steps, left by a cut run, are dropped.
        total: steps of the whole run.
        open_trackers: gives the further places that figures go to.
        active: False on other ranks.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        total: int,
        open_trackers: Callable[[], list[Tracker]],
        active: bool = True,
    ) -> None:
        self._active = active
        self._name = run.name
        self._bar = progress_bar(active)
        self._task = self._bar.add_task(run.name, total=total, completed=start, note="")
        if not active:
            return
        self._path = RunFolder(run).metrics
        kept = [line for line in read_json_lines(self._path) if line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._trackers = open_trackers()

    def __enter__(self) -> RunLogger:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._active:
            self._file.close()
            for tracker in self._trackers:
                tracker.close(finished=error is None)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and every number of it to the loggers."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.scalars(step, numbers)

    def picture(self, step: int, name: str, draw: Callable[[], UInt8Array]) -> None:
        """An (H, W, 3) RGB picture to the loggers; not drawn if there are none."""
        if self._active and self._trackers:
            image = draw()
            for tracker in self._trackers:
                tracker.picture(step, name, image)

    def advance(self, step: int, note: str) -> None:
        self._bar.update(self._task, completed=step, note=note)

    def say(self, text: str) -> None:
        """Print one line above the progress bar."""
        if not self._active:
            return
        if self._bar.disable:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(f"{self._name}: {text}", highlight=False)


class Meter:
    """Speed since the last line of the log, and the line itself."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._begin, self._images, self._waited = time.monotonic(), 0, 0.0

    def count(self, images: int, waited: float) -> None:
        """Add a batch of ``images`` for which the loop waited ``waited`` seconds."""
        self._images += images
        self._waited += waited

    def line(self, losses: dict[str, Tensor], progress: float, rate: float) -> dict[str, float]:
        """Loss, every term with its weight, learning rate, images/s and share of waiting.

        Raises:
            UserError: a loss that is not finite.
        """
        values = {name: value.item() for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                f"the loss is no longer finite (progress {progress:.3f}: "
                + ", ".join(f"{name} = {value:g}" for name, value in values.items())
                + "); lower optimizer.lr or a weight, or set optimizer.clip"
            )
        seconds = max(time.monotonic() - self._begin, 1e-9)
        line = {
            "progress": round(progress, 6),
            "loss": values.pop("loss"),
            **{f"loss/{name}": value for name, value in values.items()},
            **{f"weight/{name}": w for name, w in self._recipe.weights(progress).items()},
            "lr": rate,
            "images_per_second": round(self._images / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
        }
        self._begin, self._images, self._waited = time.monotonic(), 0, 0.0
        return line
