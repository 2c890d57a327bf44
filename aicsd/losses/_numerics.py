"""Two forms of the original terms: the mathematics as described, and the code as released."""

from __future__ import annotations

from typing import Literal, get_args

from aicsd.errors import UserError

Numerics = Literal["described", "released"]
"""Form of a term: the mathematics of its paper, or the released AICSD code bug for bug."""


def check_numerics(numerics: str, **fixed: tuple[object, object]) -> None:
    """Refuse unknown numerics, and what the released code cannot do.

    Args:
        numerics: as given.
        **fixed: options by name, as (given, the only value with numerics released).

    Raises:
        UserError: names the option, its value and what is allowed.
    """
    if numerics not in get_args(Numerics):
        raise UserError(f"numerics is {numerics!r}; allowed are {', '.join(get_args(Numerics))}")
    for name, (given, only) in fixed.items():
        if numerics == "released" and given != only:
            raise UserError(
                f"{name} is {given!r}, but numerics released, the released code, has "
                f"{only!r} only: leave {name} out, or choose numerics described"
            )
