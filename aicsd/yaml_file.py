"""YAML that people write: data only, bounded, and wrong files named in one line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from aicsd.errors import UserError, one_line

LARGEST_FILE = 10**7
"""Bytes of a file that is read at all."""


class StrictLoader(yaml.SafeLoader):
    """Data only: no aliases, which can grow without end, no key twice; 1e-3 is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be one word, no list or mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value[:60]!r} appears twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


_ERRORS = (yaml.YAMLError, RecursionError, ValueError, OverflowError)
"""Errors of invalid YAML; the last two come from numbers and dates out of range."""


def load_yaml(text: str) -> Any:
    """The data in ``text``; errors are those of PyYAML, and of Python's numbers and dates."""
    return yaml.load(text, StrictLoader)


def parse_yaml(text: str) -> Any:
    """The data in ``text``.

    Raises:
        UserError: no YAML, a tag, an alias, or a key that appears twice.
    """
    try:
        return load_yaml(text)
    except _ERRORS as error:
        raise UserError(f"{_reason(error)}{_line(error)}") from error


def read_yaml(path: Path, what: str = "config") -> Any:
    """The data in a YAML file of at most 10 MB.

    Args:
        path: path of the file.
        what: the file is, for the message.

    Raises:
        UserError: no such file, or one that does not hold YAML.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{what} {path} {problem}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE // 10**6} MB")
        return load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, *_ERRORS) as error:
        raise UserError(
            f"{what} {path}{_line(error)} cannot be read as YAML: {_reason(error)}"
        ) from error


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem = getattr(error, "strerror", None) or getattr(error, "problem", None) or error
    return one_line(problem)
