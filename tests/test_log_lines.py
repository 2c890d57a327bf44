"""No line of the log and no point of TensorBoard appears twice or is lost after a cut."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aicsd.engine.reporting import RunLogger
from aicsd.engine.trackers import open_trackers
from aicsd.errors import UserError

TOTAL = 4
LINES = [
    (0, "val/ics_distance"),
    (1, "loss"),
    (2, "loss"),
    (2, "val/miou"),
    (3, "loss"),
    (4, "loss"),
    (4, "val/miou"),
    (4, "val/ics_distance"),
]
"""Step and key of everything that a run of four steps logs, in order."""


@pytest.fixture(autouse=True)
def _seconds_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second after the one before."""
    seconds = count(int(time.time()))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))


def log(run: Path, start: int, lines: Iterable[tuple[int, str]], total: int = TOTAL) -> None:
    trackers = partial(open_trackers, ["tensorboard"], run, {})
    with RunLogger(run, start, total, trackers) as logger:
        for step, key in lines:
            logger.scalars(step, {key: step / 10})


def logged(run: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], key) for line in lines for key in line if key != "step"]


def points(run: Path) -> list[tuple[int, str]]:
    board = EventAccumulator(str(run))
    board.Reload()
    found = [(event.step, key) for key in board.Tags()["scalars"] for event in board.Scalars(key)]
    return sorted(found)


CHECKPOINTS = {0: 0, 2: 4, 4: 6}
"""Step of a checkpoint, and how many of the lines were logged when it was written."""


@pytest.mark.parametrize(
    ("start", "cut"),
    [(start, cut) for start, done in CHECKPOINTS.items() for cut in range(done, len(LINES) + 1)],
)
def test_everything_is_logged_once(tmp_path: Path, start: int, cut: int) -> None:
    """The last checkpoint is of step ``start``; the run was killed after ``cut`` lines."""
    log(tmp_path, 0, LINES[:cut])
    log(tmp_path, start, LINES[CHECKPOINTS[start] :])
    assert logged(tmp_path) == LINES
    assert points(tmp_path) == sorted(LINES)


def test_a_run_that_gets_longer_keeps_its_last_validation(tmp_path: Path) -> None:
    more = [(5, "loss"), (6, "loss"), (6, "val/miou")]
    log(tmp_path, 0, LINES)
    log(tmp_path, TOTAL, more, total=6)
    assert logged(tmp_path) == [*LINES, *more]
    assert points(tmp_path) == sorted([*LINES, *more])


@pytest.mark.parametrize("content", ['{"loss": 1}\n', '{"step": "a"}\n', "[1]\n", "{\n"])
def test_a_damaged_log_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged.*to continue without it"):
        log(tmp_path, 2, [])
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_files_of_one_second_are_not_read_in_the_wrong_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ninth and the tenth file of a process: by name, 10 comes before 9."""
    looks = count()
    monkeypatch.setattr(time, "time", lambda: 1000.0 + next(looks) // 40)  # slower than one start
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for step in range(12):
        log(tmp_path, step, [(step + 1, "loss")], total=20)
    assert points(tmp_path) == [(step, "loss") for step in range(1, 13)]
    names = sorted(path.name for path in tmp_path.glob("events.*"))
    assert len({name.split(".")[3] for name in names}) == len(names) == 12
