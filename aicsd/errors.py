"""Errors that the user can fix, with did-you-mean suggestions."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 1500
"""Characters of a message."""
OUT_OF_MEMORY = (
    "allocate memory",
    "out of memory",
    "bad_alloc",
    "bad alloc",
    "ALLOC_FAILED",
    "Insufficient memory",
)
"""Words of PyTorch, of the runtimes and of OpenCV."""


class UserError(ValueError):
    """Something in the input is wrong.

    The message is one line: what was wrong, where, and how to fix it. The command line prints it
    and exits with code 2. Of a line that a long value makes endless, the middle is left out.
    """

    def __init__(self, text: str = "") -> None:
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"
        super().__init__(text)


class BrokenInputError(UserError):
    """An image or video that cannot be read; the others can still be predicted."""


class NotEnoughMemoryError(UserError):
    """The request is too large for the memory."""


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turn an error of any library about too little memory into one line.

    Args:
        what: follows ``not enough memory``: for what, and what to do about it.

    Raises:
        NotEnoughMemoryError: there is not enough.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(f"not enough memory {what}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too small."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY)


def one_line(error: BaseException | str, longest: int = 200) -> str:
    """The beginning of a library's message, without line breaks and colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join(plain.split())[:longest] or type(error).__name__


def suggest(word: object, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'? (allowed: ...)`` for an unknown word."""
    allowed = list(allowed)
    return f"{did_you_mean(word, allowed)} (allowed: {', '.join(allowed) or 'none'})"


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for an unknown word, or nothing if no word is near."""
    near = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_options(
    where: str, build: Callable[..., object], options: dict[str, Any], taken: Container[str] = ()
) -> None:
    """Refuse options that ``build`` does not take by keyword, naming the nearest right one.

    Args:
        where: the options belong to, for the message.
        build: function or class that takes the options.
        options: by name.
        taken: parameters of ``build`` other than options.
    """
    allowed = [
        name
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in taken
    ]
    for key in options:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, allowed)}")
