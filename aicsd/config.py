"""Configs as plain data: one parser for files, flags and Python."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint

from aicsd.engine.config import FitConfig
from aicsd.errors import UserError, suggest

F = TypeVar("F", bound=FitConfig)


class ConfigParser(ArgumentParser):
    """A parser whose errors are one line that names the nearest right key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        missing = re.search(r'expected "([\w.]*)subcommand" .* was not provided', message)
        if missing is not None:  # the parser's own message stops after five of them
            above = missing.group(1).split(".")[:-1]
            known = ", ".join(self.commands(above))
            raise UserError(
                f"no command{' after ' if above else ''}{' '.join(above)}; give {known}"
            )
        command = re.search(r"Subcommand '(\w+)'", message)
        raise UserError(explain(message, self.known_keys(command.group(1) if command else None)))

    def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Namespace:
        """Parse a config file; one that is no YAML mapping is an error that names it."""
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            reason = " ".join(str(getattr(error, "problem", error)).split())
            raise UserError(f"config {path}{line} cannot be read as YAML: {reason}") from error
        if not isinstance(content, dict):
            raise UserError(f"config {path} must be a mapping of keys, as --print_config shows it")
        values: Namespace = super().parse_path(path, *arguments, **options)
        return values

    def instantiate(self, namespace: Namespace, *arguments: Any, **options: Any) -> Namespace:
        """Build the configs in ``namespace``; a plain value in place of a section is refused."""
        for key in self.known_keys():
            section = key.rpartition(".")[0]
            if not section or section not in namespace:
                continue
            held = namespace[section]
            if not isinstance(held, Namespace):
                raise UserError(f"{section} is {held!r}; it must hold keys such as {key}")
        built: Namespace = super().instantiate(namespace, *arguments, **options)
        return built

    def commands(self, above: list[str]) -> list[str]:
        """Names of the subcommands, of this parser or of the subcommand ``above``."""
        found: dict[str, ConfigParser] = {}
        for action in self._actions:
            found |= getattr(action, "_name_parser_map", {})
        return found[above[0]].commands(above[1:]) if above else list(found)

    def known_keys(self, command: str | None = None) -> list[str]:
        """Every key of this parser and of its subcommands, or of ``command`` alone."""
        keys: list[str] = []
        for action in self._actions:
            for name, subparser in getattr(action, "_name_parser_map", {}).items():
                if command in (None, name):
                    keys += subparser.known_keys()
            name = action.dest.rpartition(".")[2]
            if "==" not in action.dest and name not in ("help", "print_config"):
                keys.append(action.dest)
        return list(dict.fromkeys(keys))


def explain(message: str, keys: list[str]) -> str:
    """One line from a message of the parser, with the nearest right key for an unknown one."""
    text = " ".join(message.split())
    for pattern in (
        r"unrecognized arguments: --([\w.]+)",
        r"group '([\w.]+)' does not accept option '([\w.]+)'",
        r"does not accept option '([\w.]+)'",
        r"^option '([\w.]+)' is not accepted",
        r"[Kk]ey '([\w.]+)' is not expected",
    ):
        unknown = re.search(pattern, text, re.IGNORECASE)
        if unknown is not None:
            key = ".".join(unknown.groups())
            hint = suggest(key, keys).split(" (allowed")[0]
            return f"unknown key {key!r}{hint or '; --help lists every key'}"
    missing = re.search(r"the following arguments are required: (.*)", text)
    if missing is not None:
        names = [name.rpartition(".")[2] for name in missing.group(1).split(", ")]
        return f"missing: {', '.join(names)}; --help tells what it is"
    wrong = re.search(r'^Parser key "([\w.]+)": Expected an? (.+?)\. Got value: ?(.*)$', text)
    if wrong is not None:
        return f"{wrong.group(1)} is {wrong.group(3)!r}; it must be {_in_words(wrong.group(2))}"
    return re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)


def _in_words(kind: str) -> str:
    """The type that the parser expected, for a person."""
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if choices is not None:
        return f"one of {choices.group(1)}"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false",
             "dict": "a mapping"}  # fmt: skip
    name = kind.removeprefix("<class '").removesuffix("'>")
    return words.get(name, name)


def config_parser(config_class: type[FitConfig], **arguments: Any) -> ConfigParser:
    """A parser of every field of ``config_class``, and of ``--config FILE``."""
    parser = ConfigParser(**arguments)
    parser.add_argument("--config", action="config", help="YAML file; flags after it override it")
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if action.dest == "terms":
            action.__class__ = _MergedMapping
    return parser


class _MergedMapping(ActionTypeHint):
    """A mapping of mappings in which ``--terms.icsd.weight 50`` leaves other keys of icsd alone.

    jsonargparse merges the outer mapping and replaces the inner one.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if len(arguments) == 4:
            parser, values, text, flag = arguments
            outer, _, inner = flag.removeprefix(f"--{self.dest}").removeprefix(".").partition(".")
            if inner:
                held = (values.get(self.dest) or {}).get(outer, {})
                merged = yaml.safe_dump({**held, inner: _parse_value(text)}, sort_keys=False)
                arguments = (parser, values, merged, f"--{self.dest}.{outer}")
        return super().__call__(*arguments, **options)  # type: ignore[no-untyped-call]


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def bracket_scales(arguments: list[str]) -> list[str]:
    """``--scales 0.75,1.0`` means ``--scales [0.75,1.0]``."""
    arguments = list(arguments)
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag != "--scales":
            continue
        if value:
            arguments[place] = f"{flag}={_bracketed(value)}"
        elif place + 1 < len(arguments):
            arguments[place + 1] = _bracketed(arguments[place + 1])
    return arguments


def _bracketed(value: str) -> str:
    return value if value.startswith(("[", "-")) else f"[{value}]"


def build_config(config_class: type[F], keys: dict[str, Any]) -> F:
    """A checked config from plain (nested) keys.

    Raises:
        UserError: an unknown key, with the nearest right one, or a wrong value.
    """
    parser = config_parser(config_class)
    return config_from_namespace(config_class, parser.instantiate(parser.parse_object(keys)))


def config_from_namespace(config_class: type[F], values: Namespace) -> F:
    """The config in what a parser of :func:`config_parser` has parsed and instantiated."""
    return config_class(**{f.name: values[f.name] for f in fields(config_class)})
