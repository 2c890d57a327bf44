"""Stopping a run without losing a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):  # noqa: N818
    """The run was told to stop and has saved where it stands."""


@contextmanager
def stop_signal() -> Iterator[list[int]]:
    """A list that becomes non-empty at SIGINT or SIGTERM, so that a step is never cut in half."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    try:
        before = {number: signal.signal(number, receive) for number in numbers}
    except ValueError:  # not in the main thread: signals belong to the caller
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
