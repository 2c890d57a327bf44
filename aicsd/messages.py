"""Messages on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str, source: str = "aicsd") -> None:
    """Print one line, ``SOURCE: TEXT``; without a standard error, nothing.

    Args:
        text: message without a line break.
        source: the program, or the name of a run.
    """
    with suppress(OSError):
        print(f"{source}: {text}", file=sys.stderr, flush=True)
