"""Help pages, made from the settings of a command."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

from aicsd.cli.parser import PRINT_CONFIG, SHORT, Command
from aicsd.config import presets_of
from aicsd.settings import Setting, leaves, section_help, settings_of

COLUMN = 28
"""Column in which explanations begin."""
EVERYTHING = "--help_all"
FLAGS = ("--help", "-h", EVERYTHING)

Row = tuple[str, str]
"""A flag, and its explanation."""


def overview(program: str, description: str, commands: Mapping[str, str]) -> str:
    """The help of a program that has commands: a line for each."""
    rows = [_filled(f"    {name:<11} {text}", indent=16) for name, text in commands.items()]
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            _filled(description),
            "",
            "commands:",
            *rows,
            "",
            f"{program} COMMAND --help explains a command.",
            "",
        ]
    )


def command_help(program: str, command: Command, everything: bool = False) -> str:
    """The help of a command: its common settings, or all of them, section by section."""
    named = settings_of(command.target)
    by_place = {name: setting for name, setting in named.items() if setting.positional}
    flags = {key: setting for key, setting in leaves(command.target) if not setting.positional}
    flags |= {name: _by_name(setting) for name, setting in named.items() if presets_of(setting)}
    needed = [f"--{key} {_value(s)}" for key, s in flags.items() if s.default is MISSING]
    usage = [program, *(_place(name, s) for name, s in by_place.items()), *needed, "[options]"]
    blocks = [_filled(f"usage: {' '.join(usage)}", indent=8), _filled(purpose(command))]
    if command.example:
        blocks.append(f"example: {command.example}")
    if by_place:
        rows = [(name, _explained(command, name, s)) for name, s in by_place.items()]
        blocks.append(_block("arguments", rows))
    if everything or not command.common:
        for section in dict.fromkeys(key.rpartition(".")[0] for key in flags):
            keys = [key for key in flags if key.rpartition(".")[0] == section]
            title = f"{section}: {section_help(command.target, section)}" if section else "options"
            blocks.append(_block(title, [_row(command, key, flags[key]) for key in keys]))
    else:
        title = f"options ({EVERYTHING} lists all {len(flags)})"
        blocks.append(_block(title, [_row(command, key, flags[key]) for key in command.common]))
    blocks.append(_block("more", _general(command)))
    return "\n\n".join(blocks) + "\n"


def _by_name(setting: Setting) -> Setting:
    """A section that a preset sets as a whole, as one setting."""
    known = Literal[tuple(presets_of(setting))]  # type: ignore[valid-type]
    return setting._replace(kind=known, help="a network by its name", default=None)


def purpose(command: Command) -> str:
    """The first paragraph of what documents a command."""
    text = inspect.cleandoc(command.target.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.replace("``", "").split())


def _general(command: Command) -> Iterable[Row]:
    if command.takes_config:
        yield (
            "--config FILE",
            "YAML file, or the name of a packaged config; flags override it, "
            "and a later file overrides an earlier one",
        )
        yield PRINT_CONFIG, "print the complete config as YAML and exit"
    if command.common:
        yield EVERYTHING, "explain every option"
    yield "--help", "print this page"


def _row(command: Command, key: str, setting: Setting) -> Row:
    short = next((f" (or {short})" for short, flag in SHORT.items() if flag == f"--{key}"), "")
    return (
        f"--{key} {_value(setting)}".rstrip(),
        f"{_explained(command, key, setting)}{short}{_default(setting)}",
    )


def _explained(command: Command, key: str, setting: Setting) -> str:
    note = command.notes.get(key)
    return setting.help if note is None else f"{setting.help}: {note}"


def _default(setting: Setting) -> str:
    value = setting.default
    if value is MISSING:
        return " (required)"
    if value is None or value is False or value in ("", {}, ()):
        return ""
    words = [f"{v:g}" if isinstance(v, float) else str(v) for v in _as_list(value)]
    return f" (default: {','.join(words).lower() if value is True else ','.join(words)})"


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else [value]


def _place(name: str, setting: Setting) -> str:
    several = get_origin(setting.kind) in (list, tuple)
    return f"{name.upper()} ..." if several else name.upper()


def _value(setting: Setting) -> str:
    """Value of a flag in the help: its choices, or its kind."""
    kind, origin = setting.kind, get_origin(setting.kind)
    if origin is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if origin in (tuple, list):
        item = _value(setting._replace(kind=get_args(kind)[0], default=None))
        return f"{item},..."
    if kind is bool:
        return "{true,false}" if setting.default else ""
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "{KEY: VALUE}")


def _block(title: str, rows: Iterable[Row]) -> str:
    lines = [_filled(f"{title}:")]
    for head, text in rows:
        beside = len(head) + 4 <= COLUMN
        first = f"  {head}".ljust(COLUMN) if beside else " " * COLUMN
        filled = _filled(first + text, indent=COLUMN)
        lines += [filled] if beside else [f"  {head}", filled]
    return "\n".join(lines)


def _filled(text: str, indent: int = 0) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text.lstrip(),
        max(width, COLUMN + 30),
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
