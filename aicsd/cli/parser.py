"""Parse the words of a command line into the settings of a command."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_origin

import yaml

from aicsd.config import (
    build_config,
    checked,
    expanded,
    find_config,
    merge,
    parse_text,
    presets_of,
    refuse_unknown,
    unknown_key,
)
from aicsd.errors import UserError
from aicsd.run_settings import renamed
from aicsd.settings import Setting, leaves, settings_of
from aicsd.yaml_file import read_yaml

SHORT = {"-o": "--out"}
PRINT_CONFIG = "--print_config"

Values = dict[str, Any]


class Preset(dict[str, Any]):
    """The keys of a section that a flag sets as a whole: ``--student small``."""


class Command(NamedTuple):
    """One command: its settings, and the function that runs it."""

    target: Any
    """A config class, which takes ``--config`` too; or a function, whose required parameters before
    ``*`` are named by their place."""
    run: Callable[..., int]
    """Gets the config, or the arguments of the function; returns the exit code."""
    common: Sequence[str] = ()
    """Keys that ``--help`` shows, the rest being behind ``--help_all``; empty: all."""
    example: str = ""
    notes: Mapping[str, str] = MappingProxyType({})
    """Setting -> text after its explanation in the help, such as names from a table."""
    base: Callable[[Values], Path | None] = lambda _: None
    """The config file to start from where ``--config`` gives none, by what the flags set."""
    beneath: Callable[[Values, Values], Values] = lambda below, _: below
    """Filter of settings beneath others, where two layers (config files, flags) are merged."""

    @property
    def takes_config(self) -> bool:
        """Whether its settings can come from a file."""
        return isinstance(self.target, type)


def call(command: Command, words: Sequence[str]) -> int:
    """Run a command with what ``words`` set.

    Raises:
        UserError: as :func:`parse`, or a value that the command refuses.
    """
    printed = command.takes_config and PRINT_CONFIG in words
    values = parse(command, [word for word in words if not (printed and word == PRINT_CONFIG)])
    if printed:
        print(print_config(command.target, values), end="")
        return 0
    if command.takes_config:
        return command.run(build_config(command.target, values))
    return command.run(**checked(command.target, values))


def parse(command: Command, words: Sequence[str]) -> Values:
    """Settings by ``words``, as nested plain data, over those of the config files.

    Raises:
        UserError: an unknown flag, one without a value, a word too many, or a config file that is
            wrong.
    """
    free, flags, files = _take_apart(command, words)
    given: Values = {}
    for path, value in flags:
        _put(given, path, value)
    base = command.base(given)
    values: Values = {}
    for file in files or ([] if base is None else [str(base)]):
        layer = read_config(file, command.target)
        values = merge(command.beneath(values, layer), layer)
    # a preset, which sets a section as a whole, goes before the keys of that section
    presets = [flag for flag in flags if isinstance(flag[1], Preset)]
    single = [flag for flag in flags if flag not in presets]
    keys: Values = {}
    for path, value in presets:
        _put(values, path, value)
    for path, value in single:
        _put(keys, path, value)
    values = command.beneath(values, keys)
    for path, value in single:
        _put(values, path, value)
    return values | _by_place(command.target, free)


def _take_apart(
    command: Command, words: Sequence[str]
) -> tuple[list[str], list[tuple[list[str], Any]], list[str]]:
    """Words other than flags; path and value of every flag; config files."""
    free: list[str] = []
    flags: list[tuple[list[str], Any]] = []
    files: list[str] = []
    rest = deque(words)
    by_place = any(setting.positional for setting in settings_of(command.target).values())
    while rest:
        word = rest.popleft()
        if not word.startswith("-") or word == "-":
            free.append(word)
            continue
        flag, equals, text = word.partition("=")
        key = SHORT.get(flag, flag).removeprefix("--")
        is_config = command.takes_config and key == "config"
        setting = None if is_config else _setting(command.target, key)
        value = text if equals else _next_value(key, setting, rest, by_place)
        if is_config:
            files.append(value)
        else:
            if setting is None:
                value = parse_text(value)
            elif setting.is_section:
                value = Preset(expanded(setting, value, key))
            flags.append((key.split("."), value))
    return free, flags, files


def _next_value(key: str, setting: Setting | None, rest: deque[str], by_place: bool) -> Any:
    """The word behind a flag; a switch needs none."""
    ends = not rest or rest[0].startswith("--") or rest[0] in SHORT
    if setting is not None and setting.kind is bool:
        # the next word may be an input, such as an image, and not the value
        if ends or (by_place and rest[0] not in ("true", "false")):
            return True
    elif ends:
        raise UserError(f"--{key}: expected one argument; see --help")
    return rest.popleft()


def _setting(target: Callable[..., Any], key: str) -> Setting | None:
    """The setting that a flag names; None for a key inside a mapping: ``terms.kd.weight``."""
    settings = settings_of(target)
    parts = key.split(".")
    for depth, part in enumerate(parts, 1):
        setting = settings.get(part)
        if setting is None or setting.positional:
            break
        if depth == len(parts) and (not setting.is_section or presets_of(setting)):
            return setting
        if setting.is_section:
            settings = settings_of(setting.kind)
        elif get_origin(setting.kind) is dict:
            return None
        else:
            break
    raise UserError(unknown_key(target, key))


def _put(values: Values, path: Sequence[str], value: Any) -> None:
    *above, last = path
    for part in above:
        held = values.get(part)
        held = parse_text(held) if isinstance(held, str) else held
        values[part] = dict(held) if isinstance(held, Mapping) else {}
        values = values[part]
    values[last] = value


def _by_place(target: Callable[..., Any], words: Sequence[str]) -> Values:
    rest, values = list(words), {}
    for name, setting in settings_of(target).items():
        if setting.positional and rest:
            takes_all = get_origin(setting.kind) in (list, tuple)
            values[name] = rest if takes_all else rest[0]
            rest = [] if takes_all else rest[1:]
    if rest:
        root = next((key for key, _ in leaves(target) if key.endswith("data.root")), None)
        hint = (
            f"did you mean --{root} {rest[0]}?" if root else "--help shows the form of the command"
        )
        raise UserError(f"unexpected {rest[0]!r}; {hint}")
    return values


def read_config(name: str, target: Callable[..., Any]) -> Values:
    """The keys of a config file, or of one that comes with the package: ``folder/aicsd``.

    Raises:
        UserError: no such file, no mapping, or a key that ``target`` does not have.
    """
    path = find_config(name)
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UserError(f"config {path} must be a mapping of keys, as {PRINT_CONFIG} shows it")
    content = renamed(content)
    try:
        refuse_unknown(target, content)
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error
    settings = settings_of(target)
    return {name: expanded(settings[name], value, name) for name, value in content.items()}


def print_config(config_class: Any, values: Values) -> str:
    """Every setting as YAML; one that must be given and is not, is left out."""
    absent = [
        name
        for name, setting in settings_of(config_class).items()
        if setting.default is MISSING and name not in values
    ]
    keys = asdict(build_config(config_class, values | dict.fromkeys(absent, "")))
    return yaml.safe_dump({k: v for k, v in keys.items() if k not in absent}, sort_keys=False)
