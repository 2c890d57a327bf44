"""The YAML file of a benchmark: methods x students x seeds.

    common: {teacher: runs/teacher, epochs: 120, data: {name: camvid}}  # options of aicsd distill
    students:
      mobilenetv2_050: {backbone: mobilenetv2_050}
    seeds: [0, 1, 2]
    methods:                     # rows of the table, in the order of their value
      none:
      aicsd:
      kd: {terms: {pixel_kd: {temperature: 2}}, search: true}
    equal_time: [aicsd]          # the student alone, for as long as aicsd took

A row has any option of ``aicsd distill``, which goes before the common ones, and: ``method``, where
it is not the row's name; ``compare_to``, the row that differences are taken to; ``match``, which
sets the epochs so that the row has as many ``steps`` or ``labelled_views`` as another row; and
``search: true``, which chooses the weights of its terms in short trainings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aicsd.benchmark.methods import Benchmark, Match, Row, Search
from aicsd.config import merge
from aicsd.errors import UserError, suggest
from aicsd.files import read_yaml_mapping
from aicsd.runs import LABELS_ALONE

MATCHES = ("steps", "labelled_views")
KEYS = ("common", "students", "seeds", "methods", "baseline", "main", "equal_time", "search")
ROW_KEYS = ("compare_to", "match", "search")


def read_benchmark(
    path: Path,
    common: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Benchmark:
    """The benchmark of a file.

    Args:
        path: path of the YAML file.
        common: options that go before those of the file.
        weights: weights of students without any in the file.

    Raises:
        UserError: a file that cannot be read, an unknown key or row, a wrong option.
    """
    content = read_yaml_mapping(path)
    try:
        benchmark = _parse(content, common or {}, weights)
        for key in benchmark.order():
            benchmark.cell(key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return benchmark


def _parse(content: Mapping[str, Any], common: Mapping[str, Any], weights: str | None) -> Benchmark:
    _check_keys("", content, KEYS)
    students = {
        str(name): {**({} if weights is None else {"weights": weights}), **_options(name, options)}
        for name, options in _mapping(content, "students").items()
    }
    rows = {}
    for name, options in _mapping(content, "methods").items():
        rows[str(name)] = _row(str(name), options or {})
    baseline = str(content.get("baseline", LABELS_ALONE))
    _check_rows("baseline", [baseline], rows)
    for name in _list(content, "equal_time", []):
        _check_rows("equal_time", [name], rows)
        alone = Row(f"{baseline}, as long as {name}", dict(rows[baseline].options), None)
        rows[alone.name] = replace(alone, match=Match("time", name))
    for row in rows.values():
        others = [row.compare_to] if row.compare_to else []
        _check_rows(f"methods.{row.name}", [*others, *([row.match.row] if row.match else [])], rows)
    _check_circles(rows)
    main = _list(content, "main", [name for name, row in rows.items() if row.match is None])
    _check_rows("main", main, rows)
    searching = _mapping(content, "search", empty=True)
    _check_keys("search.", searching, ("factors", "share"))
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"seeds is {seeds!r}; it is a list of whole numbers such as [0, 1, 2]")
    return Benchmark(
        common=merge(_mapping(content, "common", empty=True), common),
        students=students,
        seeds=tuple(dict.fromkeys(seeds)),
        rows={
            name: replace(row, compare_to=row.compare_to or baseline) if name != baseline else row
            for name, row in rows.items()
        },
        baseline=baseline,
        main=frozenset(map(str, main)),
        search=_search(searching),
    )


def _row(name: str, options: Any) -> Row:
    if not isinstance(options, Mapping):
        raise UserError(f"methods.{name} is {options!r}; it must hold options, or nothing")
    match = options.get("match")
    if match is not None:
        right = isinstance(match, Mapping) and len(match) == 1 and next(iter(match)) in MATCHES
        if not right:
            raise UserError(
                f"methods.{name}: match is {match!r}; it holds steps or labelled_views, and a row"
            )
        match = Match(*map(str, next(iter(match.items()))))
    search = options.get("search", False)
    if not isinstance(search, bool):
        raise UserError(
            f"methods.{name}: search is {search!r}; it is true or false, and factors and share "
            "belong to the key search beside methods"
        )
    own = {key: value for key, value in options.items() if key not in ROW_KEYS}
    compare_to = options.get("compare_to")
    return Row(
        name,
        {"method": name, **own},
        None if compare_to is None else str(compare_to),
        match,
        search,
    )


def _search(values: Mapping[str, Any]) -> Search:
    factors, share = values.get("factors", Search.factors), values.get("share", Search.share)
    numbers: list[Any] = [share, *factors] if isinstance(factors, list | tuple) else []
    fits = all(type(number) in (int, float) and 0 < number < math.inf for number in numbers)
    if len(numbers) < 2 or not fits or share > 1:
        raise UserError(
            f"search is {dict(values)!r}; factors is a list of numbers above 0, share is above 0 "
            "and at most 1"
        )
    return Search(tuple(factors), share)


def _mapping(content: Mapping[str, Any], key: str, empty: bool = False) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping) or not (value or empty):
        raise UserError(f"{key} is {value!r}; it must hold keys")
    return value


def _list(content: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = content.get(key, default)
    if not isinstance(value, list):
        raise UserError(f"{key} is {value!r}; it must be a list of rows, such as [aicsd]")
    return value


def _options(student: object, options: Any) -> Mapping[str, Any]:
    if not isinstance(options, Mapping | None):
        raise UserError(f"students.{student} is {options!r}; it must hold options, or nothing")
    return options or {}


def _check_keys(prefix: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {prefix + str(key)!r}{suggest(str(key), list(known))}")


def _check_circles(rows: Mapping[str, Row]) -> None:
    """Refuse rows whose epochs follow from their own."""
    for row in rows.values():
        chain, at = [row.name], row
        while at.match is not None:
            at = rows[at.match.row]
            if at.name in chain:
                raise UserError(
                    f"methods.{row.name}: match goes round in a circle: "
                    f"{' -> '.join([*chain, at.name])}"
                )
            chain.append(at.name)


def _check_rows(where: str, names: Iterable[Any], rows: Mapping[str, Row]) -> None:
    for name in names:
        if name not in rows:
            raise UserError(f"{where}: there is no row {name!r}{suggest(str(name), list(rows))}")
