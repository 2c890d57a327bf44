"""Progress bars for terminals, and lines of progress for pipes and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

FIRST_LINE, NEXT_LINE = 5.0, 60.0
"""Seconds after which a wait is a line where no bar can be drawn, and until the next line."""
SPEED_OVER = 600.0
"""Seconds that the time left is estimated from: two slow steps lie far apart."""


def progress_bar(enabled: bool = True, *, first_line: float = FIRST_LINE) -> Bar:
    """A progress bar on standard error with the time left; now and then a line without a terminal.

    Args:
        enabled: whether anything is shown.
        first_line: seconds without a terminal before the first line.
    """
    return Bar(enabled, first_line)


class TimeLeft(ProgressColumn):
    """``0:12:30 left``, as soon as two steps have shown how long one takes."""

    def render(self, task: Task) -> Text:
        return Text(left_text(task))


class Bar(Progress):
    """A bar where there is a terminal, else lines; a notebook, which draws no bar, gets lines.

    Args:
        enabled: whether anything is shown.
        first_line: seconds before the first line.
    """

    def __init__(self, enabled: bool, first_line: float) -> None:
        console = Console(stderr=True)
        draws = console.is_terminal and not console.is_jupyter
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            disable=not (enabled and draws),
            speed_estimate_period=SPEED_OVER,
        )
        self._writes_lines = enabled and not draws
        self._first_line = first_line
        self._due: dict[TaskID, float] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count further units of a task."""
        super().advance(task_id, advance)
        self._write_line(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Set the progress of a task and its fields, as in rich."""
        super().update(task_id, **changes)
        self._write_line(task_id)

    @contextmanager
    def second(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A task beside the others that disappears when it is done; gives what counts its units."""
        task = self.add_task(what, total=total, note="")
        self._due[task] = self.get_time() + FIRST_LINE
        try:
            yield lambda units: self.advance(task, units)
        finally:
            self.remove_task(task)

    def _write_line(self, number: TaskID) -> None:
        if not self._writes_lines:
            return
        task, now = self._tasks[number], self.get_time()
        due = self._due.setdefault(number, (task.start_time or now) + self._first_line)
        if now < due or task.finished:
            return
        self._due[number] = now + NEXT_LINE
        with suppress(OSError):
            print(line_of(task), file=sys.stderr, flush=True)


def line_of(task: Task) -> str:
    """``run: 120/900, epoch 3/16, loss 0.512, 0:03:10, 0:20:35 left``."""
    total = "" if task.total is None else f"/{task.total:.0f}"
    elapsed = str(timedelta(seconds=round(task.elapsed or 0)))
    parts = [f"{task.completed:.0f}{total}", task.fields.get("note"), elapsed, left_text(task)]
    return f"{task.description}: {', '.join(part for part in parts if part)}"


def left_text(task: Task) -> str:
    """Time left of a task, or nothing where it is not known yet."""
    seconds = None if task.finished else task.time_remaining
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
