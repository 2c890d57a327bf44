"""Progress while a command runs: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from aicsd import terminal
from aicsd.engine.reporting import RunLogger


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    progress = Progress.__init__

    def build(self: Any, *columns: Any, **options: Any) -> None:
        progress(self, *columns, **options, get_time=clock)

    monkeypatch.setattr(Progress, "__init__", build)
    return clock


def test_lines_in_a_pipe_are_few_and_tell_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.progress_bar(first_line=30) as bar:
        task = bar.add_task("run", total=100, note="")
        for step in range(1, 101):
            clock.now += 2
            bar.update(task, completed=step, note=f"epoch 1/2, loss {step / 100:.3f}")
    lines = capsys.readouterr().err.splitlines()
    # at 30 s and every 60 s from there; two seconds a step
    assert lines == [
        f"run: {step}/100, epoch 1/2, loss {step / 100:.3f}, {elapsed}, {left} left"
        for step, elapsed, left in (
            (15, "0:00:30", "0:02:50"),
            (45, "0:01:30", "0:01:50"),
            (75, "0:02:30", "0:00:50"),
        )
    ]


def test_slow_steps_have_a_time_left_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar() as bar:
        task = bar.add_task("run", total=10, note="")
        for _ in range(3):
            clock.now += 200
            bar.advance(task)
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "run: 3/10, 0:10:00, 0:23:20 left"


def test_short_work_and_other_processes_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for enabled, seconds in ((True, 1), (False, 100)):
        with terminal.progress_bar(enabled) as bar:
            task = bar.add_task("work", total=3, note="")
            for _ in range(3):
                clock.now += seconds
                bar.advance(task)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_that_moves_at_every_step(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        terminal,
        "Console",
        lambda **_: Console(file=screen, force_terminal=True, width=120, force_jupyter=False),
    )
    with RunLogger(tmp_path, 0, 4, lambda _: []) as logger:
        for step in (1, 2, 3):
            clock.now += 5
            logger.advance(step, f"epoch {step}/4", step / 10)
            logger._bar.refresh()
        with logger.counting("validating", 8) as advance:
            advance(4)
            logger._bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for step, left in ((2, "0:00:10"), (3, "0:00:05")):
        wanted = rf"{step}/4 epoch {step}/4, loss 0\.{step}00 0:00:{5 * step:02} {left} left"
        assert re.search(wanted, shown), shown
    assert re.search(r"validating .* 4/8", shown)
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        terminal, "Console", lambda **_: Console(file=io.StringIO(), force_jupyter=True)
    )
    with terminal.progress_bar() as bar:
        task = bar.add_task("run", total=10, note="")
        for _ in range(2):
            clock.now += 6
            bar.advance(task)
    assert capsys.readouterr().err == "run: 1/10, 0:00:06\n"
