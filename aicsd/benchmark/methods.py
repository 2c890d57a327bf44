"""Methods x students x seeds: the cells of a benchmark, and what identifies a training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from aicsd.benchmark.table import result_settings
from aicsd.config import build_config, merge
from aicsd.data.open import differs_by_root
from aicsd.engine.run_recipe import check_cache, recipe_of
from aicsd.errors import UserError
from aicsd.methods import Recipe
from aicsd.run_config import DistillConfig
from aicsd.run_settings import UNIMPORTANT, flatten, renamed
from aicsd.runs import RunFolder

OF_TEACHER = ("teacher", "teacher_cache", "teacher_cache_top_k", "teacher_runtime")


class Key(NamedTuple):
    """A cell of the table."""

    student: str
    row: str
    seed: int

    def __str__(self) -> str:
        return f"{self.student} {self.row}, seed {self.seed}"


class Match(NamedTuple):
    """``what`` (steps, labelled_views or time) is to be equal to that of ``row``."""

    what: str
    row: str


@dataclass(frozen=True)
class Row:
    """A row of the table, for every student.

    Args:
        name: as the file has it.
        options: options of ``aicsd distill``, with ``method``.
        compare_to: row that its differences are taken to; None for the baseline.
        match: rule for its epochs; None if the options set them.
        search: whether short trainings choose the weights of its terms.
    """

    name: str
    options: dict[str, Any]
    compare_to: str | None
    match: Match | None = None
    search: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is the baseline, trained for as long as another row."""
        return self.match is not None and self.match.what == "time"


@dataclass(frozen=True)
class Search:
    """Search for the weights of a row.

    Args:
        factors: multiples of the gradient-matched weights, one short training each; a
            single factor decides without a training.
        share: share of the epochs that a short training has.
    """

    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    share: float = 0.1


@dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        key: its place in the table.
        config: complete, but for the folder of the run.
        options: its source, for ``aicsd distill --config``.
    """

    key: Key
    config: DistillConfig
    options: dict[str, Any]

    @cached_property
    def recipe(self) -> Recipe:
        """Terms of its method."""
        return recipe_of(self.config)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Settings that make its result: see :func:`identity_of`."""
        return identity_of(asdict(replace(self.config, terms=self.recipe.to_dict())))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as its file describes it.

    Args:
        common: options of ``aicsd distill`` for all cells.
        students: options of the student, by name.
        seeds: in the order of their value.
        rows: by name, in the order of their value.
        baseline: row that others are compared to.
        main: rows whose seeds go before the seeds of others.
        search: search for weights.
    """

    common: dict[str, Any]
    students: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    rows: dict[str, Row]
    baseline: str
    main: frozenset[str]
    search: Search

    def order(self) -> list[Key]:
        """Every cell, the most valuable first: a seed of the main rows, then of the others."""
        rows, students = list(self.rows), list(self.students)
        ranks = {
            Key(student, row, seed): (
                place + (row not in self.main),
                students.index(student),
                rows.index(row),
            )
            for place, seed in enumerate(self.seeds)
            for row in rows
            for student in students
        }
        return sorted(ranks, key=ranks.__getitem__)

    def cell(self, key: Key, *decided: Mapping[str, Any]) -> Cell:
        """The training of a cell.

        Args:
            key: its place in the table.
            decided: further options, each over those before it.

        Raises:
            UserError: an option that is wrong; the message names the row.
        """
        options = merge(self.common, {"student": self.students[key.student]})
        for more in (self.rows[key.row].options, *decided, {"seed": key.seed}):
            options = merge(options, more)
        try:
            cell = Cell(key, build_config(DistillConfig, {**options, "run": "-"}), options)
            if not cell.recipe.needs_teacher:
                options = {name: value for name, value in options.items() if name not in OF_TEACHER}
                cell = Cell(key, build_config(DistillConfig, {**options, "run": "-"}), options)
            elif cell.config.teacher is None:
                raise UserError("it needs a teacher: give --teacher RUN_OR_SAFETENSORS")
            elif cell.config.teacher_cache is not None:
                check_cache(cell.recipe, cell.config.teacher_cache_top_k)
        except UserError as error:
            raise UserError(f"methods.{key.row}: {error}") from error
        return cell


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that make its result, flat: two runs with equal ones are one.

    A teacher, weights or a map of classes in a file count by their content, wherever they are.

    Args:
        config: complete, as in ``config.yaml``.
    """
    settings = result_settings(dict(config))
    kept = {k: v for k, v in settings.items() if k == "seed" or k not in UNIMPORTANT}
    if differs_by_root(settings["data.name"]):
        kept["data.root"] = os.path.normpath(settings["data.root"])
    for key in ("teacher", "teacher_classes", "student.weights"):
        if kept.get(key) is not None:
            kept[key] = _content(str(kept[key]))
    kept["teacher_cache"] = kept.get("teacher_cache") is not None
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity that an earlier version wrote, with the keys that it had not at their defaults.

    Args:
        identity: as of :func:`identity_of`.
    """
    nested: dict[str, Any] = {}
    for key, value in identity.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    is_cached = identity.get("teacher_cache") or None
    found = identity_of({**renamed(nested), "teacher_cache": is_cached})
    return found | {"method": identity["method"]}  # once without the suffix of a file


def stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``aicsd distill`` that decide a result, as stated, without defaults."""
    flat = {key: value for key, value in flatten(options).items() if key not in UNIMPORTANT}
    files = ("teacher", "teacher_classes", "student.weights", "method")
    contents = {key: _content(str(flat[key])) for key in files if flat.get(key) is not None}
    return flat | contents | {"teacher_cache": flat.get("teacher_cache") is not None}


def _content(reference: str) -> str:
    """Digest of the file that a reference names; the reference itself, if it names none."""
    path = Path(reference)
    path = RunFolder(path).model if path.is_dir() else path
    if not path.is_file():
        return reference
    return _digest(path.absolute(), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, _: int) -> str:
    return f"sha256:{sha256(path.read_bytes()).hexdigest()[:32]}"
