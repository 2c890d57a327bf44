"""The networks that a picture or a report compares: read from run folders, in a fixed order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from aicsd.data import open_dataset
from aicsd.data.base import Classes, SegDataset
from aicsd.errors import UserError
from aicsd.files import CONFIG_FILE, METRICS_FILE, RESULT_FILE
from aicsd.models import Segmenter, load_model
from aicsd.teacher import Teacher
from aicsd.visualization.ics_history import ICSHistory, read_history


@dataclass(frozen=True)
class RunFiles:
    """What a finished run has written down.

    Args:
        path: its folder.
        config: of ``config.yaml``.
        result: of ``metrics.json``.
        lines: of ``metrics.jsonl``, in the order of the steps.
        ics: of ``ics.safetensors``; None for a run of an older version.
    """

    path: Path
    config: dict[str, Any]
    result: dict[str, Any]
    lines: list[dict[str, Any]]
    ics: ICSHistory | None = None

    @property
    def command(self) -> str:
        """``train`` or ``distill``."""
        return "distill" if "student" in self.config else "train"

    @property
    def title(self) -> str:
        """``student alone``, ``student AICSD``; of a run of ``aicsd train``, its folder."""
        if self.command == "train":
            return self.path.name
        method = Path(str(self.config.get("method"))).stem
        return "student alone" if method == "none" else f"student {method.upper()}"

    @property
    def is_alone(self) -> bool:
        """Trained on labels only."""
        return self.command == "train" or self.config.get("method") == "none"


@dataclass(frozen=True)
class Network:
    """One network to compare.

    Args:
        title: short and unique.
        model: in evaluation mode; None if it cannot be loaded any more.
        metrics: keys as in ``metrics.json``; empty if nobody measured it.
        run: that trained it; None for a teacher that is not a run.
        is_teacher: of the others.
    """

    title: str
    model: Segmenter | None
    metrics: dict[str, Any]
    run: RunFiles | None
    is_teacher: bool = False


def read_run(path: Path) -> RunFiles:
    """The files of a finished run.

    Raises:
        UserError: no such folder, not finished, or a file that cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"no run folder {path}")
    for name in (CONFIG_FILE, RESULT_FILE):
        if not (path / name).is_file():
            raise UserError(f"{path} is not a finished run: no {name} in it")
    config = _read_mapping(path / CONFIG_FILE)
    result = _read_mapping(path / RESULT_FILE)
    return RunFiles(path, config, result, _read_lines(path / METRICS_FILE), read_history(path))


def open_networks(
    runs: Sequence[RunFiles], teacher: str | None, classes: Classes
) -> tuple[list[Network], list[str]]:
    """Teacher, students trained alone, distilled students; and a line for what is missing.

    Args:
        runs: to compare; one that is the teacher of another takes the teacher's place.
        teacher: run folder or model file; without it the one that the first run names.
        classes: of the data; the teacher may know more of them, in another order.

    Raises:
        UserError: a network of ``runs``, or ``teacher``, that cannot be loaded or has other
            classes.
    """
    named = teacher or next((run.config["teacher"] for run in runs if _teacher(run)), None)
    notes: list[str] = []
    networks: list[Network] = []
    if named is not None:
        try:
            networks = [_open_teacher(str(named), runs, classes)]
        except UserError as error:
            if teacher is not None:
                raise
            notes.append(f"The teacher is missing in pictures: {error}.")
            networks = [Network("teacher", None, _teacher_metrics(runs), None, is_teacher=True)]
    students = [run for run in runs if named is None or not _same(run.path, Path(str(named)))]
    if not students:
        raise UserError(
            f"the only run is the teacher, {named}; give a student's run, or no teacher"
        )
    for run in sorted(students, key=lambda run: not run.is_alone):
        model = load_model(run.path)
        _check_classes(run, model, classes)
        networks.append(Network(run.title, model, run.result, run))
    return _with_unique_titles(networks), notes


def open_run_data(
    run: RunFiles,
    name: str | None = None,
    root: str | None = None,
    split: str | None = None,
    options: dict[str, Any] | None = None,
) -> SegDataset:
    """The validation split of ``run``, or what is given in its place."""
    data = run.config["data"]
    return open_dataset(
        name or data["name"],
        root or data["root"],
        split or data["val_split"],
        options if options is not None else data["options"],
    )


def _open_teacher(named: str, runs: Sequence[RunFiles], classes: Classes) -> Network:
    path = Path(named)
    model = Teacher(load_model(path), classes).model
    files = read_run(path) if (path / RESULT_FILE).is_file() else None
    measured = _teacher_metrics(runs) or (files.result if files is not None else {})
    return Network("teacher", model, measured, files, is_teacher=True)


def _teacher(run: RunFiles) -> bool:
    return bool(run.config.get("teacher"))


def _teacher_metrics(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """As the students' runs measured it, on their data."""
    return next((run.result["teacher"] for run in runs if run.result.get("teacher")), {})


def _check_classes(run: RunFiles, model: Segmenter, classes: Classes) -> None:
    if model.classes.names != classes.names:
        raise UserError(
            f"{run.path} was trained on the classes {list(model.classes.names)} but the data has "
            f"{list(classes.names)}; compare runs on the same classes"
        )


def _with_unique_titles(networks: list[Network]) -> list[Network]:
    counts = Counter(network.title for network in networks)
    return [
        replace(network, title=f"{network.title} ({network.run.path.name})")
        if counts[network.title] > 1 and network.run is not None
        else network
        for network in networks
    ]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of keys, as a run writes it")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
