"""The command line, config files and their errors, on small classes and on the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from aicsd.cli import COMMANDS, find_command
from aicsd.cli.help import command_help
from aicsd.cli.parser import Command, parse
from aicsd.config import SHIPPED, build_config, checked
from aicsd.errors import UserError
from aicsd.settings import leaves, settings_of
from aicsd.yaml_file import parse_yaml, read_yaml


@dataclass(frozen=True)
class Inner:
    """Settings of a part."""

    rate: float = 0.5
    """how fast"""
    kind: Literal["red", "green"] = "red"
    sizes: tuple[int, ...] = (1, 2)
    on: bool = False
    checked: bool = True


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of all.

    Args:
        name: what it is
            called.
    """

    name: str
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))
    maybe: Inner | None = None
    count: int | None = None
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)


def function(
    model: str, images: list[str], *, out: str, flip: bool = False, part: Inner | None = None
) -> None:
    """Do it.

    Args:
        model: a model.
        images: some images
        flip: mirrored too.
    """


OUTER = Command(Outer, lambda _: 0, common=("name", "inner.rate"))
FUNCTION = Command(function, lambda **_: 0)


def outer(*words: str) -> Outer:
    return build_config(Outer, parse(OUTER, ["--name", "x", *words]))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# values


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--inner.rate", "1e-3"], "rate", 0.001),
        (["--inner.rate=2"], "rate", 2.0),
        (["--inner.rate", "-1.5"], "rate", -1.5),
        (["--inner.kind", "green"], "kind", "green"),
        (["--inner.sizes", "3,4"], "sizes", (3, 4)),
        (["--inner.sizes", "[3, 4]"], "sizes", (3, 4)),
        (["--inner.sizes", "3"], "sizes", (3,)),
        (["--inner.on"], "on", True),
        (["--inner.on", "--inner.checked", "false"], "on", True),
        (["--inner.on=true"], "on", True),
        (["--inner.on", "false"], "on", False),
        (["--inner.checked", "false"], "checked", False),
    ],
)
def test_a_flag_is_read_as_the_type_of_its_field(words: list[str], key: str, value: object) -> None:
    found = getattr(outer(*words).inner, key)
    assert found == value
    assert type(found) is type(value)


def test_what_is_not_given_has_the_default_of_its_place() -> None:
    assert outer().inner == Inner(rate=0.25)
    assert outer("--inner.kind", "green").inner == Inner(rate=0.25, kind="green")
    assert outer().maybe is None
    assert outer("--maybe.rate", "1").maybe == Inner(rate=1.0)
    assert outer("--count", "null").count is None
    assert outer("--count", "3").count == 3
    assert dict(leaves(Outer))["inner.rate"].default == 0.25


def test_a_term_is_changed_key_by_key_or_replaced() -> None:
    words = [
        "--terms",
        "{a: {x: 1, y: 2}, b: {}}",
        "--terms.a.x",
        "5",
        "--terms.c.at.student",
        "s4",
    ]
    assert outer(*words).terms == {"a": {"x": 5, "y": 2}, "b": {}, "c": {"at": {"student": "s4"}}}
    assert outer(*words, "--terms.a", "{z: 1}").terms["a"] == {"z": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inner.rate", "fast"], "inner.rate is 'fast'; it must be a number"),
        (["--inner.rate", ".nan"], "inner.rate is '.nan'; it must be a number"),
        (["--inner.rate", "1e999"], "inner.rate is '1e999'; it must be a number"),
        (["--count", "1.5"], "count is '1.5'; it must be a whole number"),
        (["--count", "true"], "count is 'true'; it must be a whole number"),
        (["--inner.kind", "blue"], "inner.kind is 'blue'; it must be one of 'red', 'green'"),
        (["--inner.on", "maybe"], "inner.on is 'maybe'; it must be true or false"),
        (["--inner.sizes", "3,b"], "inner.sizes is 'b'; it must be a whole number"),
        (["--inner.sizes", ","], "inner.sizes is empty; it must be a list, each a whole number"),
        (["--terms", "3"], "terms is '3'; it must be a mapping"),
        (["--terms.a", "3"], "terms.a is 3; it must be a mapping"),
        (["--terms.a.x", ".inf"], "terms.a.x is inf; it must be a finite number or text"),
        (["--terms.a.x", "[1, .nan]"], "terms.a.x is nan; it must be a finite number or text"),
        (["--terms.a.day", "2024-01-01"], "terms.a.day is 2024-01-01; it must be"),
        (["--inner", "3"], "unknown key 'inner'"),
        (["--rate", "3"], "unknown key 'rate'; did you mean 'inner.rate' or 'maybe.rate'?"),
        (["--inner.rat", "3"], "unknown key 'inner.rat'; did you mean 'inner.rate'?"),
        (["--kin", "3"], "unknown key 'kin'; did you mean"),
        (["--inner.rate.more", "3"], "unknown key 'inner.rate.more'"),
        (["--inner.rate"], "--inner.rate: expected one argument"),
        (["--inner.rate", "--count", "3"], "--inner.rate: expected one argument"),
        (["word"], "unexpected 'word'"),
        (["--config", "nowhere"], "config nowhere does not exist"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    assert message in error_of(lambda: outer(*words))


def test_what_is_missing_is_named() -> None:
    assert error_of(lambda: build_config(Outer, {})).startswith("missing: name;")
    assert error_of(lambda: checked(function, parse(FUNCTION, ["m"]))).startswith(
        "missing: images, out;"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inner": None}, "inner is empty; it must hold keys such as inner.rate"),
        ({"inner": 3}, "inner is 3; it must hold keys such as inner.rate"),
        ({"inner": [1]}, "inner is [1]; it must hold keys"),
        ({"iner": {"rate": 1}}, "unknown key 'iner'; did you mean 'inner'?"),
        ({"other": {"rate": 1}}, "unknown key 'other.rate'; did you mean"),
        ({"inner": {"rate": True}}, "inner.rate is True; it must be a number"),
        ({"inner": {"rate": 10**400}}, "inner.rate is 1"),
        ({"name": 3}, "name is 3; it must be text"),
        ({3: 4}, "unknown key '3'"),
    ],
)
def test_a_wrong_key_is_one_line(keys: dict[Any, Any], message: str) -> None:
    assert message in error_of(lambda: build_config(Outer, {"name": "x", **keys}))


def test_configs_can_be_given_whole() -> None:
    assert build_config(Outer, {"name": "x", "inner": Inner(rate=7.0)}).inner.rate == 7.0


# words by place


def test_words_by_place_and_flags_in_any_order() -> None:
    words = ["m", "--flip", "a.png", "-o", "out", "-", "--part.on", "b.png"]
    assert checked(function, parse(FUNCTION, words)) == {
        "model": "m",
        "images": ["a.png", "-", "b.png"],
        "out": "out",
        "flip": True,
        "part": Inner(on=True),
    }
    words = ["m", "a", "--flip", "false", "--out=o"]
    assert checked(function, parse(FUNCTION, words))["flip"] is False
    assert "unknown key 'model'" in error_of(lambda: parse(FUNCTION, ["--model", "m"]))


# files


def test_flags_override_files_wherever_they_stand(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("name: one\ninner: {rate: 1, kind: green}\nterms: {a: {x: 1, y: 1}}\n")
    two.write_text("name: two\ninner: {rate: 2}\nterms: {a: {x: 2}}\n")
    words = ["--inner.rate", "3", "--config", str(one), "--config", str(two)]
    config = build_config(Outer, parse(OUTER, words))
    assert (config.name, config.inner.rate, config.inner.kind) == ("two", 3.0, "green")
    assert config.terms == {"a": {"x": 2, "y": 1}}


@pytest.mark.parametrize("name", ["digits/teacher", "configs/digits/teacher.yaml"])
def test_configs_come_with_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, command, words = find_command(["train", "--config", name, "--run", "x"])
    assert build_config(command.target, parse(command, words)).model.backbone == "resnet10t"
    message = error_of(lambda: parse(command, ["--config", "digits/teecher"]))
    assert "config digits/teecher does not exist; did you mean 'digits/teacher'?" in message


def test_a_file_goes_before_one_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "teacher").write_text("name: mine\n")
    assert parse(OUTER, ["--config", "digits/teacher"])["name"] == "mine"


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_the_package_are_right(path: Path) -> None:
    keys = read_yaml(path)
    if "common" not in keys:  # of aicsd benchmark methods: see benchmark/test_methods.py
        _, command, _ = find_command(["train" if path.stem == "teacher" else "distill"])
        build_config(command.target, {"run": "x", **keys})


WRONG_FILES = {
    "list_key": ("[a]: y\n", "a key must be one word"),
    "twice": ("name: x\nname: y\n", "line 2 cannot be read as YAML: the key 'name' appears twice"),
    "twice_nested": ("name: x\ninner:\n  rate: 1\n  rate: 2\n", "line 4 cannot be read as YAML"),
    "alias": ("name: &a [x]\ncount: *a\n", "aliases are not allowed"),
    "deep": ("[" * 3000 + "]" * 3000, "nested too deeply"),
    "digits": ("count: " + "9" * 5000, "config.yaml cannot be read as YAML"),
    "date": ("name: 2024-13-45\n", "month must be in 1..12"),
    "tag": ("name: !!python/name:os.system\n", "line 1 cannot be read as YAML"),
    "list": ("- 1\n", "must be a mapping of keys"),
    "empty": ("", "must be a mapping of keys"),
    "empty_section": ("inner:\n", "config.yaml: inner is empty; it must hold keys such as"),
    "unknown": ("inner: {rat: 1}\n", "config.yaml: unknown key 'inner.rat'; did you mean 'inner."),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    line = error_of(lambda: parse(OUTER, ["--config", str(path)]))
    assert line.startswith("config ")
    assert message in line


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "latin.yaml").write_bytes("name: stra\xdfe\n".encode("latin-1"))
    for path in tmp_path.iterdir():
        assert "cannot be read as YAML" in error_of(partial(read_yaml, path))
    assert "is not a file" in error_of(partial(read_yaml, tmp_path))


def test_yaml_reads_numbers_with_exponents() -> None:
    text = "a: 1e-3\nb: 5.0e-4\nc: 1E5\nd: 1e\ne: 1.5\nf: -.5e3\n"
    assert parse_yaml(text) == {"a": 0.001, "b": 0.0005, "c": 1e5, "d": "1e", "e": 1.5, "f": -500}


# help


def test_help_is_made_from_the_settings() -> None:
    assert [setting.help for setting in settings_of(Inner).values()] == ["how fast", "", "", "", ""]
    assert settings_of(Outer)["name"].help == "what it is called"
    text = command_help("aicsd outer", OUTER)
    assert "--name TEXT" in text
    assert "how fast (default: 0.25)" in text
    assert "--count" not in text
    everything = command_help("aicsd outer", OUTER, everything=True)
    for words in ("--count N", "--inner.kind {red,green}", "--inner.sizes N,...", "(default: 1,2)",
                  "--inner.checked {true,false}", "--terms {KEY: VALUE}"):  # fmt: skip
        assert words in everything
    assert "usage: aicsd function MODEL IMAGES ... --out TEXT [options]" in command_help(
        "aicsd function", FUNCTION
    )


def commands() -> list[str]:
    found = []
    for name, entry in COMMANDS.items():
        loaded = entry.load()
        parts = [""] if isinstance(loaded, Command) else loaded
        found += [f"{name} {part}".strip() for part in parts]
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_is_documented(name: str) -> None:
    _, command, _ = find_command(name.split())
    settings = dict(leaves(command.target))
    assert not [key for key, setting in settings.items() if not setting.help]
    classes = [each.kind for each in settings_of(command.target).values() if each.is_section]
    assert not [kind for kind in classes if "Args:" in (kind.__doc__ or "")]  # under each field
    assert not [key for key, setting in settings.items() if "{datasets}" in setting.help]
    sections = {key.rpartition(".")[0] for key in settings}  # --student NAME, say
    assert set(command.common) <= settings.keys() | sections
    text = command_help(f"aicsd {name}", command, everything=True)
    assert max(map(len, text.splitlines())) <= 120
    if command.example:
        _, found, words = find_command(command.example.split()[1:])
        assert found == command
        assert parse(command, words)
