"""Checked settings from plain data: YAML, flags and Python all come through here.

A wrong key or value is named by its dotted key.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from aicsd.errors import UserError, suggest
from aicsd.files import at_home
from aicsd.settings import Setting, leaves, settings_of
from aicsd.yaml_file import parse_yaml

T = TypeVar("T")
SHIPPED = Path(__file__).parent / "configs"
"""Configs that come with the package."""


def find_config(name: str) -> Path:
    """The path of a config file; ``folder/aicsd`` is one that comes with the package.

    Raises:
        UserError: neither.
    """
    path = Path(at_home(name))
    if path.exists():
        return path
    known = sorted(
        file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.rglob("*.yaml")
    )
    # configs/folder/aicsd.yaml is where it lay in the repository of an older version
    shipped = path.with_suffix("").as_posix().removeprefix("configs/")
    if shipped not in known:
        raise UserError(f"config {name} does not exist{suggest(name, known)}")
    return SHIPPED / f"{shipped}.yaml"


def build_config(config_class: type[T], keys: Mapping[str, Any]) -> T:
    """A checked config from plain (nested) keys.

    Raises:
        UserError: an unknown key, with the nearest right one, a missing key, or a wrong value.
    """
    return config_class(**checked(config_class, keys))


def checked(target: Callable[..., Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``target`` from plain (nested) keys.

    Raises:
        UserError: as :func:`build_config`.
    """
    refuse_unknown(target, keys)
    missing = [
        name
        for name, setting in settings_of(target).items()
        if setting.default is MISSING and name not in keys
    ]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; see --help")
    return _convert_all(target, keys, "")


def refuse_unknown(target: Callable[..., Any], keys: Mapping[str, Any]) -> None:
    """Refuse keys that ``target`` does not have, and plain values in place of a section.

    Raises:
        UserError: names the first of them, and the nearest right key.
    """

    def walk(settings: Mapping[str, Setting], values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            setting = settings.get(name)
            if setting is None:
                raise UserError(unknown_key(target, key, value))
            if not setting.is_section or isinstance(value, setting.kind):
                continue
            value = expanded(setting, value, key)
            below = settings_of(setting.kind)
            if isinstance(value, Mapping):
                walk(below, value, f"{key}.")
            elif not (value is None and setting.optional):
                found = "empty" if value is None else repr(value)
                raise UserError(
                    f"{key} is {found}; it must hold keys such as {key}.{next(iter(below))}"
                )

    walk(settings_of(target), keys, "")


def presets_of(setting: Setting) -> dict[str, dict[str, Any]]:
    """Names that stand for the keys of a section; none for other settings."""
    presets: Callable[[], dict[str, dict[str, Any]]] = getattr(setting.kind, "presets", dict)
    return presets()


def expanded(setting: Setting, value: Any, key: str) -> Any:
    """The keys that a preset stands for where a section is given by name; else ``value``.

    Raises:
        UserError: no preset of that name.
    """
    known = presets_of(setting)
    if not known or not isinstance(value, str):
        return value
    if value not in known:
        first = next(iter(settings_of(setting.kind)))
        raise UserError(
            f"{key} is {value!r}; it must be the name of a preset ({', '.join(known)}) or hold "
            f"keys such as {key}.{first}"
        )
    return known[value]


def unknown_key(target: Callable[..., Any], key: str, value: Any = None) -> str:
    """The line for a key that ``target`` does not have; in YAML it may hold others."""
    known = [name for name, _ in leaves(target)]
    if isinstance(value, Mapping) and value:
        sections = {name.rpartition(".")[0] for name in known} - {""}
        near = difflib.get_close_matches(key, sections, 1)
        if not near:
            inner = next(iter(value))
            return unknown_key(target, f"{key}.{inner}", value[inner])
    else:
        leaf = key.rpartition(".")[2]
        near = [name for name in known if name.rpartition(".")[2] == leaf]
        near = near or difflib.get_close_matches(key, known, 1, 0.5)
        last = {name.rpartition(".")[2]: name for name in known}
        near = near or [last[name] for name in difflib.get_close_matches(leaf, last, 1, 0.7)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help lists every key"
    return f"unknown key {key!r}{hint}"


def _convert_all(
    target: Callable[..., Any], keys: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    settings = settings_of(target)
    return {name: _convert(settings[name], keys[name], f"{prefix}{name}") for name in keys}


def _convert(setting: Setting, value: Any, key: str) -> Any:
    """``value`` as the type of its setting; text, as flags have it, is read as that type."""
    kind, origin = setting.kind, get_origin(setting.kind)
    if setting.optional and (value is None or value == "null"):
        return None
    if setting.is_section:
        if isinstance(value, kind):
            return value
        given = _convert_all(kind, expanded(setting, value, key), f"{key}.")
        default: Any = setting.default
        return replace(default, **given) if isinstance(default, kind) else kind(**given)
    if origin is Literal:
        if value in get_args(kind):
            return value
    elif origin in (tuple, list):
        item = setting._replace(kind=get_args(kind)[0], optional=False)
        parts = _split(value) if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            if not parts:
                raise UserError(f"{key} is empty; it must be {in_words(kind)}")
            return origin(_convert(item, part, key) for part in parts)
    elif origin is dict:
        return _mapping(kind, value, key)
    elif kind is str:
        if isinstance(value, str):
            return at_home(value)
    else:
        read = parse_text(value) if isinstance(value, str) else value
        if _is_a(kind, read):
            return kind(read)
    raise _wrong(key, value, kind)


def _split(text: str) -> list[str]:
    """``3,4`` or ``[3, 4]`` -> its parts."""
    return [part.strip() for part in text.strip("[] ").split(",") if part.strip()]


def _is_a(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int) if kind is int else _is_finite(value)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _mapping(kind: Any, value: Any, key: str) -> dict[str, Any]:
    """A mapping of plain values, or of such mappings."""
    given = parse_text(value) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise _wrong(key, value, dict)
    inner = get_args(kind)[1]
    if get_origin(inner) is dict:
        return {
            str(name): _mapping(inner, {} if item is None else item, f"{key}.{name}")
            for name, item in given.items()
        }
    return {str(name): _plain(item, f"{key}.{name}") for name, item in given.items()}


def _plain(value: Any, key: str) -> Any:
    """``value`` if it is made of text, finite numbers, switches, lists and mappings."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if value is None or isinstance(value, str | bool) or _is_finite(value):
        return value
    raise UserError(f"{key} is {value}; it must be a finite number or text")


def parse_text(text: str) -> Any:
    """Value of a flag's text: a number, a switch, a list, a mapping, or the text itself."""
    try:
        return parse_yaml(text)
    except UserError:
        return text


def in_words(kind: Any) -> str:
    """Words for the values of a type."""
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if origin in (tuple, list):
        return f"a list, each {in_words(get_args(kind)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "a mapping")


def _wrong(key: str, value: Any, kind: Any) -> UserError:
    return UserError(f"{key} is {value!r}; it must be {in_words(kind)}")


def merge(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` over ``values``, mapping by mapping."""
    merged = dict(values)
    for key, value in more.items():
        held = merged.get(key)
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            value = merge(held, value)
        merged[key] = value
    return merged
