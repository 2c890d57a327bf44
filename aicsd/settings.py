"""Settings: the fields of a config class, or the parameters of a function."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class Setting(NamedTuple):
    """One field of a config class, or one parameter of a function."""

    kind: Any
    """Its type, without the ``None`` of an optional one."""
    optional: bool
    default: Any
    """``MISSING`` if it must be given."""
    help: str
    positional: bool = False
    """A parameter that is named by its place."""

    @property
    def is_section(self) -> bool:
        """Whether it holds settings of its own."""
        return is_dataclass(self.kind)


@cache
def settings_of(target: Callable[..., Any]) -> Mapping[str, Setting]:
    """Settings in order: the fields of a dataclass, or the parameters of a function.

    Help is the docstring under a field, or what stands under ``Args:``. ``{word}`` under a field
    is replaced by that word of the class's ``help_words()``, such as the names in a table.
    """
    docs = _argument_docs(target.__doc__ or "")
    if isinstance(target, type):
        docs |= _field_docs(target)
        hints = get_type_hints(target)
        return {
            field.name: Setting(
                *_split_optional(hints[field.name]),
                field.default if field.default_factory is MISSING else field.default_factory(),
                docs.get(field.name, ""),
            )
            for field in fields(target)
        }
    annotations = {name: kind for name, kind in target.__annotations__.items() if name != "return"}
    hints = get_type_hints(SimpleNamespace(__annotations__=annotations), target.__globals__)
    return {
        name: Setting(
            *_split_optional(hints[name]),
            MISSING if parameter.default is parameter.empty else parameter.default,
            docs.get(name, ""),
            parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY,
        )
        for name, parameter in inspect.signature(target).parameters.items()
    }


def leaves(target: Callable[..., Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting that holds no others, by its dotted key, with its default where it stands."""
    for name, setting in settings_of(target).items():
        if not setting.is_section:
            yield f"{prefix}{name}", setting
            continue
        for key, leaf in leaves(setting.kind, f"{prefix}{name}."):
            if is_dataclass(setting.default):
                value = setting.default
                for part in key.removeprefix(f"{prefix}{name}.").split("."):
                    value = getattr(value, part)
                leaf = leaf._replace(default=value)
            yield key, leaf


def section_help(target: Callable[..., Any], section: str) -> str:
    """Help of a section, named by its dotted key: that of the setting that holds it."""
    settings, text = settings_of(target), ""
    for part in section.split("."):
        text = settings[part].help
        settings = settings_of(settings[part].kind)
    return text


def _argument_docs(docstring: str) -> dict[str, str]:
    """``Args:`` of a docstring -> text on each."""
    found = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.cleandoc(docstring), re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", found[1] if found else "", re.MULTILINE)
    return {name: _one_line(text) for name, text in entries}


def _field_docs(config_class: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of those it extends."""
    docs: dict[str, str] = {}
    for part in reversed([c for c in config_class.__mro__ if is_dataclass(c)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str(words))):
                        docs[field.target.id] = _one_line(words)
        words_of = getattr(part, "help_words", dict)
        for word, names in words_of().items():
            docs = {name: text.replace(f"{{{word}}}", names) for name, text in docs.items()}
    return docs


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "").split()).removesuffix(".")


def _split_optional(kind: Any) -> tuple[Any, bool]:
    """``X | None`` -> X, and whether it may be None."""
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    kinds = [part for part in get_args(kind) if part is not NoneType]
    assert len(kinds) == 1, f"{kind}: a setting has one type"
    return kinds[0], True
