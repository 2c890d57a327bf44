"""Progress bar, metrics.jsonl and the chosen trackers of a run."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
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

FIRST_LINE = 30.0
"""Seconds of training without a terminal before the first line about its progress."""


class RunLogger:
    """Writes the logs of a run; on other ranks than the first it does nothing.

    Args:
        run: the run folder.
        start: step that the run starts from; what a cut run has logged beyond it is dropped.
        total: steps of the whole run.
        open_trackers: opens the trackers, from the first step that is logged again.
        active: False on other ranks.

    Raises:
        UserError: a log that cannot be read or written.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        total: int,
        open_trackers: Callable[[int], list[Tracker]],
        active: bool = True,
    ) -> None:
        self._active = active
        self._name = run.name
        self._bar = progress_bar(active, first_line=FIRST_LINE)
        self._loss = math.nan
        self._task = self._bar.add_task(run.name, total=total, completed=start, note="")
        if not active:
            return
        self._folder = RunFolder(run)
        path = self._folder.metrics
        first, kept = _kept_lines(path, start, total)
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        with self._writing():
            self._file = path.open("a", encoding="utf-8")
            self._trackers = open_trackers(first)
            for line in kept:
                if line["step"] >= first:  # the trackers have dropped it
                    self._track(line["step"], line)

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
        if not self._active:
            return
        with suppress(UserError) if error is not None else nullcontext(), self._writing():
            self._file.close()
        for tracker in self._trackers:
            with suppress(UserError) if error is not None else nullcontext(), self._writing():
                tracker.close(finished=error is None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn the errors of a full disk, or of a folder that is gone, into one line."""
        try:
            yield
        except OSError as error:
            self._folder.require_place()
            reason = error.strerror or error
            raise UserError(f"cannot write the logs in {self._folder.path}: {reason}") from error

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, and its numbers to the loggers."""
        if not self._active:
            return
        with self._writing():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._track(step, values)

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and name != "step"
        }
        for tracker in self._trackers:
            tracker.scalars(step, numbers)

    def picture(self, step: int, name: str, draw: Callable[[], UInt8Array]) -> None:
        """An (H, W, 3) RGB picture to the loggers; not drawn if there are none."""
        if self._active and self._trackers:
            image = draw()
            with self._writing():
                for tracker in self._trackers:
                    tracker.picture(step, name, image)

    def advance(self, step: int, epoch: str, loss: float | None = None) -> None:
        """Move the bar; without a terminal, print a line now and then.

        Args:
            step: number of completed steps.
            epoch: as ``epoch 2/16``.
            loss: loss of the step; without it the last one is shown.
        """
        self._loss = self._loss if loss is None else loss
        self._bar.update(self._task, completed=step, note=f"{epoch}, loss {self._loss:.3f}")

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A second bar while something else than steps is done; gives what counts its units."""
        with self._bar.second(f"{self._name}: {what}", total) as advance:
            yield advance

    def say(self, text: str) -> None:
        """Print one line above the bar; without a standard error, training continues."""
        if not self._active:
            return
        with suppress(OSError):
            if self._bar.disable:
                print(f"{self._name}: {text}", file=sys.stderr, flush=True)
            else:
                line = f"{self._name}: {text}"
                self._bar.console.print(line, highlight=False, markup=False)


def score_text(score: float | None, *, why: bool = False) -> str:
    """A score in [0, 1] as it is printed; ``-`` if no pixel decided about it."""
    if score is None or math.isnan(score):
        return "- (no pixel with a label)" if why else "-"
    return f"{score:.4f}"


def _kept_lines(path: Path, start: int, total: int) -> tuple[int, list[dict[str, Any]]]:
    """The first step that is logged again, and the lines before it."""
    lines = read_json_lines(path)
    if not all(isinstance(line.get("step"), int) for line in lines):
        raise UserError(f"{path} is damaged: a line has no step; delete it to continue without it")
    if start == 0:
        return 0, []
    kept = [line for line in lines if line["step"] <= start]
    if start < total:
        return start + 1, kept
    # only the last validation is repeated, not the step before it
    return start, [line for line in kept if line["step"] < start or "loss" in line]


class Meter:
    """Speed since the last line of the log, and the line itself."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._finite: dict[str, float] = {}
        self._begin, self._images, self._waited = time.monotonic(), 0, 0.0

    def count(self, images: int, waited: float) -> None:
        """Add a batch of ``images`` for which the loop waited ``waited`` seconds."""
        self._images += images
        self._waited += waited

    def line(
        self, losses: dict[str, Tensor], progress: float, rate: float
    ) -> dict[str, float | None]:
        """Loss, every term with its weight, learning rate, images/s and share of waiting.

        In a step that was skipped, a value that is not finite is the last one that was.
        """
        found = {name: value.item() for name, value in losses.items()}
        self._finite |= {name: value for name, value in found.items() if math.isfinite(value)}
        values = {name: self._finite.get(name) for name in found}
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
