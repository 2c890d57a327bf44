"""Stopping a run without losing a step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """The run was stopped by a signal and has saved its state.

    Not derived from ``Exception``, as KeyboardInterrupt, so that code which catches all exceptions
    lets it pass.
    """


@contextmanager
def stop_signal() -> Iterator[list[int]]:
    """A list that becomes non-empty at a signal to stop, so that a step is never cut in half.

    The signals are SIGINT, SIGTERM and SIGHUP; a second one ends the process at once.
    """
    received: list[int] = []
    with _handled(received.append):
        yield received


@contextmanager
def interruptible(describe: Callable[[], str]) -> Iterator[None]:
    """Raise ``Interrupted`` at a signal to stop, with the text that ``describe`` gives then."""

    def stop(_: int) -> None:
        raise Interrupted(describe())

    with _handled(stop):
        yield


@contextmanager
def _handled(act: Callable[[int], object]) -> Iterator[None]:
    def receive(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        act(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)  # nohup has it ignored
    try:
        before = {number: signal.signal(number, receive) for number in numbers}
    except ValueError:  # only the main thread may handle signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
