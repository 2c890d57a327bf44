"""The networks that a picture or a report compares: read from run folders, in a fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aicsd.data.open import differs_by_root
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.files import read_json
from aicsd.models import Segmenter, load_model
from aicsd.run_settings import UNIMPORTANT, flatten
from aicsd.runs import FinishedRun, RunFolder
from aicsd.teacher import Teacher
from aicsd.teacher.cache import fingerprint
from aicsd.visualization.ics_history import ICSHistory, read_history

FOLDER_NAMES = ("folder", "auto")
"""Names of datasets that do not name their content."""
MOST_SETTINGS = 3
"""Settings that a title names."""


@dataclass(frozen=True)
class Network:
    """One network to compare.

    Args:
        title: short and unique.
        model: in evaluation mode; None if it cannot be loaded any more.
        metrics: keys as in ``metrics.json``; empty without a measurement.
        run: run that trained it; None for a teacher without a run.
        is_teacher: whether this network taught the others.
        history: its ICS matrices during training; None for a run of an older version.
        setting: its title without the seed; empty where they are the same.
        of_other_teacher: whether it was distilled from another teacher than the one shown.
    """

    title: str
    model: Segmenter | None
    metrics: dict[str, Any]
    run: FinishedRun | None
    is_teacher: bool = False
    history: ICSHistory | None = None
    setting: str = ""
    of_other_teacher: bool = False

    @property
    def seed(self) -> int | None:
        return None if self.run is None else self.run.config.get("seed")


def open_networks(
    runs: Sequence[FinishedRun], teacher: str | None, classes: Classes
) -> tuple[list[Network], list[str]]:
    """Teacher, students trained alone, distilled students; and a line for what is missing.

    Args:
        runs: to compare; one that is the teacher of another takes the teacher's place.
        teacher: run folder or model file; without it the one that the first run names.
        classes: classes of the data; the teacher may have more, in another order.

    Raises:
        UserError: a network of ``runs``, or ``teacher``, that cannot be loaded or has other
            classes.
    """
    named = teacher or next((run.teacher for run in runs if run.teacher), None)
    notes: list[str] = []
    networks: list[Network] = []
    taught: Sequence[FinishedRun] = runs
    if named is not None:
        try:
            model = _open_teacher(named, runs, classes)
        except UserError as error:
            if teacher is not None:
                raise
            notes.append(f"The teacher is missing in pictures: {error}.")
            model = None
        taught = [run for run in runs if _is_taught_by(run, named, model)]
        metrics, run = _teacher_metrics(taught), None
        if model is not None and RunFolder(named).is_finished:
            run = RunFolder(named).read()
            if not metrics and all(_same_images(run, other) for other in runs):
                metrics = run.result
        if model is not None and not metrics:
            notes.append(
                "The teacher was not measured on the images of the runs: --evaluate true does that."
            )
        networks = [Network("teacher", model, metrics, run, is_teacher=True)]
    students = [run for run in runs if named is None or not _same(run.path, Path(named))]
    if not students:
        raise UserError(
            f"the only run is the teacher, {named}; give a student's run, or no teacher"
        )
    for run in sorted(students, key=lambda run: not run.is_alone):
        model = load_model(run.path)
        _check_classes(run, model, classes)
        history = read_history(run.path)
        other = all(run is not one for one in taught)
        networks.append(
            Network(run.title, model, run.result, run, history=history, of_other_teacher=other)
        )
    networks = _with_unique_titles(networks)
    return networks, notes + [
        f"{net.title} was distilled from another teacher ({net.run.teacher}) than the one shown."
        for net in networks
        if net.of_other_teacher and net.run is not None
    ]


def data_title(name: str | None, root: str | None, split: str) -> str:
    """``camvid, split val``; of a dataset that is named by its folder alone, that folder."""
    place = Path(root).name if root else ""
    named = name or place
    if named in FOLDER_NAMES and place:
        named = place
    return f"{named}, split {split}"


def _open_teacher(named: str, runs: Sequence[FinishedRun], classes: Classes) -> Segmenter:
    maps = [run.config.get("teacher_classes") for run in runs]
    class_map = next((found for found in maps if found is not None), None)
    return Teacher(load_model(named), classes, class_map).model


def _is_taught_by(run: FinishedRun, named: str, model: Segmenter | None) -> bool:
    """Whether a run had this teacher, wherever it was then; or had none."""
    if (
        not run.result.get("teacher")
        or run.teacher is None
        or _same(Path(run.teacher), Path(named))
    ):
        return True
    inputs = RunFolder(run.path).inputs
    digest: str | None = read_json(inputs).get("teacher") if inputs.is_file() else None
    if digest is not None and model is not None:
        return fingerprint(model, digest) == digest
    return not Path(run.teacher).exists()


def _same_images(one: FinishedRun, other: FinishedRun) -> bool:
    """Whether two runs were measured on the same validation split, by its name and classes."""

    def measured_on(run: FinishedRun) -> tuple[Any, ...]:
        data = run.config["data"]
        name = data.get("name")
        place = Path(str(data.get("root"))).resolve() if differs_by_root(str(name)) else None
        split = data.get("val_split")
        return name, place, split, run.result["images"], *run.result["per_class_iou"]

    return measured_on(one) == measured_on(other)


def _teacher_metrics(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Metrics of the teacher, measured by the students' runs on their data."""
    return next((run.result["teacher"] for run in runs if run.result.get("teacher")), {})


def _check_classes(run: FinishedRun, model: Segmenter, classes: Classes) -> None:
    if model.classes.names != classes.names:
        raise UserError(
            f"{run.path} was trained on the classes {list(model.classes.names)} but the data has "
            f"{list(classes.names)}; compare runs on the same classes"
        )


def _with_unique_titles(networks: list[Network]) -> list[Network]:
    """Distinguish networks of one title by their settings, then the seed, finally the folder."""
    named = [
        replace(net, title=title, setting=title)
        for net in networks
        for title in [", ".join([net.title, *_apart(net, networks)])]
    ]
    counts = Counter(net.setting for net in named)
    named = [
        replace(net, title=f"{net.title}, seed {net.seed}")
        if counts[net.setting] > 1 and net.seed is not None
        else net
        for net in named
    ]
    counts = Counter(net.title for net in named)
    return [
        replace(net, title=f"{net.title} ({net.run.path.name})")
        if counts[net.title] > 1 and net.run is not None
        else net
        for net in named
    ]


def _apart(network: Network, networks: Sequence[Network]) -> list[str]:
    """Settings in which a run differs from others of its title, as ``epochs 60``."""
    runs = [net.run for net in networks if net.title == network.title and net.run is not None]
    if network.run is None or len(runs) < 2:
        return []
    flat = [flatten(run.settings) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    own = flatten(network.run.settings)
    differing = [
        key
        for key in keys
        if key not in UNIMPORTANT and len({repr(settings.get(key)) for settings in flat}) > 1
    ]
    texts = [f"{key.removeprefix('terms.')} {_short(own.get(key))}" for key in differing]
    return texts if len(texts) <= MOST_SETTINGS else [*texts[:MOST_SETTINGS], "..."]


def _short(value: object) -> str:
    """A value of a setting; of a path its end."""
    return Path(value).name if isinstance(value, str) and value else str(value)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
