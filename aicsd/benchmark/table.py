"""Finished runs -> groups that differ only in the seed -> mean, spread and paired differences."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from aicsd.data.open import differs_by_root
from aicsd.errors import UserError, suggest
from aicsd.files import read_json
from aicsd.methods import Recipe, load_recipe
from aicsd.models.settings import DEFAULT_FAMILY
from aicsd.run_config import DistillConfig
from aicsd.run_settings import UNIMPORTANT, flatten
from aicsd.runs import LABELS_ALONE, RunFolder, learns_alone
from aicsd.types import has_own_name

NAMES = {
    "method": "method",
    "student": "student.backbone",
    "images": "data.train_images",
    "epochs": "epochs",
}
"""Columns that name a row, and the key of the config behind each. Other keys go by themselves."""
OPTION_DOTS = 2
"""Dots in the key of an option of the data; there are more in one of a mapping."""
BESIDE = (".yaml", ".log")
"""Suffixes of the files that a benchmark of methods writes beside a run folder, with its name."""
OF_METHOD = ("method", "teacher", "terms.")
"""Beginnings of the keys in which a run may differ from its baseline."""


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run as a table compares it."""

    path: Path
    seed: int
    settings: dict[str, Any]
    """The complete config, flat, of ``aicsd train`` in the words of ``aicsd distill``."""
    metrics: dict[str, Any]
    is_alone: bool
    """Whether this student learned from labels only."""
    val_images: str | None = None
    """Digest of the names of its validation images and of some of their masks; None for a run of
    a version that kept none."""

    @property
    def measured_on(self) -> dict[str, Any]:
        """Images and settings of the measurement; figures compare if these are equal."""
        kept = {key: self.settings[key] for key in ("data.name", "data.val_split", "protocol")}
        if self.settings["protocol"] == "released":
            kept["data.augment.crop"] = self.settings["data.augment.crop"]
        if differs_by_root(self.settings["data.name"]):
            kept["data.root"] = self.settings["data.root"]
        for key, value in self.settings.items():
            # a path is the place of a dataset; a number, switch or mapping describes its content
            is_path = isinstance(value, str) and key.count(".") == OPTION_DOTS
            if key.startswith("data.options.") and not is_path:
                kept[key] = value
        if self.metrics.get("labels"):  # labels of the teacher: figures are agreement with it
            kept |= {"labels": self.metrics["labels"], "teacher": self.settings["teacher"]}
        return {
            **kept,
            "images": self.metrics["images"],
            "classes": ", ".join(self.metrics["per_class_iou"]),
        }

    @property
    def experiment(self) -> dict[str, Any]:
        """The settings that make its result, but for the seed."""
        return {key: value for key, value in self.settings.items() if key not in UNIMPORTANT}

    def is_of(self, method: str) -> bool:
        """Whether this run represents ``method``; ``none`` only without a teacher."""
        return self.is_alone if method == LABELS_ALONE else self.settings["method"] == method


class Difference(NamedTuple):
    """mIoU minus that of the baseline with the same seed, over the seeds that both have."""

    baseline: str
    seeds: list[int]
    values: list[float]


@dataclass
class Group:
    """Runs that differ only in the seed, in the order of their seeds."""

    names: dict[str, str]
    runs: list[MeasuredRun]
    apart: dict[str, Any] = field(default_factory=dict)
    """Settings that distinguish it from other groups of the same names."""
    difference: Difference | None = None
    baseline: Group | None = None
    """The group that the difference is taken to."""

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def values(self, key: str) -> list[float]:
        """A metric of every run."""
        found = (run.metrics[key] for run in self.runs)
        return [value for value in found if value is not None]

    @property
    def scores(self) -> dict[int, float]:
        """The mIoU by seed, where a pixel with a label was there to measure it."""
        found = {run.seed: run.metrics["miou"] for run in self.runs}
        return {seed: miou for seed, miou in found.items() if miou is not None}

    @property
    def is_alone(self) -> bool:
        """Whether these students learned from labels only."""
        return self.runs[0].is_alone

    @property
    def without_method(self) -> dict[str, Any]:
        """Settings that it must share with a group that it is compared with."""
        return {
            key: value
            for key, value in self.runs[0].experiment.items()
            if not key.startswith(OF_METHOD)
        }

    def class_iou(self, name: str) -> list[float]:
        """IoU of a class in every run in which it occurs."""
        found = (run.metrics["per_class_iou"][name] for run in self.runs)
        return [value for value in found if value is not None]


def read_runs(paths: Iterable[Path]) -> tuple[list[MeasuredRun], list[Path]]:
    """Finished runs, and the folders of those that are not.

    What ``aicsd benchmark methods`` writes beside a run folder, its config and its log, is no run
    and left out: ``runs/*`` names these too.

    Raises:
        UserError: a folder that is no run, or whose files cannot be read.
    """
    finished, unfinished = [], []
    for path in paths:
        folder = RunFolder(path)
        if (
            path.suffix in BESIDE
            and path.is_file()
            and RunFolder(path.with_suffix("")).config.is_file()
        ):
            continue
        folder.require_run()
        if not folder.is_finished:
            unfinished.append(path)
            continue
        config, metrics = folder.read_config(), folder.read_result()
        settings = result_settings({**config, "resumed_from": folder.resumed_from})
        alone = learns_alone(settings["method"], metrics)
        images = val_images(folder)
        finished.append(MeasuredRun(path, config["seed"], settings, metrics, alone, images))
    return finished, unfinished


def val_images(folder: RunFolder) -> str | None:
    """:attr:`MeasuredRun.val_images` of a run."""
    held = read_json(folder.inputs).get("val") if folder.inputs.is_file() else None
    if held is None:
        return None
    return sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def result_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Flat, with today's defaults for keys that are younger than the run."""
    config = dict(config)
    if "model" in config:
        config |= {"method": LABELS_ALONE, "student": config.pop("model")}
    method = Path(config.get("method", "aicsd")).stem
    recipe = _recipe_of(config)
    config |= {"method": method, "terms": _complete_terms(config, recipe)}
    if method == LABELS_ALONE and not (recipe is not None and recipe.needs_teacher):
        config["teacher"] = None  # given or not, it has no part in it
    flat = flatten(asdict(DistillConfig(run=""))) | flatten(config)
    return {key: value for key, value in flat.items() if value != {}}


def _recipe_of(config: dict[str, Any]) -> Recipe | None:
    """The terms in a config beside labels; None for keys of an older version."""
    try:
        recipe = load_recipe(LABELS_ALONE, config.get("terms") or {})
    except UserError:
        return None
    return recipe.with_numerics("released") if config.get("protocol") == "released" else recipe


def _complete_terms(config: dict[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    saved: dict[str, Any] = config.get("terms") or {}
    if recipe is None:
        return dict(saved)
    complete = recipe.to_dict()
    return {name: {**complete[name], **saved.get(name, {})} for name in saved or complete}


def group_runs(
    runs: Sequence[MeasuredRun],
    by: Sequence[str] = tuple(NAMES),
    baseline: str | None = None,
    *,
    same_images: bool = False,
) -> list[Group]:
    """Groups of runs that differ only in the seed, in the order of the runs.

    Args:
        runs: finished, all measured on the same images in the same way.
        by: keys of the config that name a row, or the short words of ``NAMES``. They never join
            runs that differ in another key: the keys in which such groups differ stand
            beside the names.
        baseline: method that differences are taken to; without it ``none``, where there is one.
        same_images: whether the metrics were measured again on the same images, with any settings.

    Raises:
        UserError: no run, runs that do not compare, the same run twice, an unknown name.
    """
    if not runs:
        raise UserError("there is no finished run among the folders")
    if not same_images:
        _check_comparable(runs)
    known = dict.fromkeys([*NAMES, *(key for run in runs for key in run.settings)])
    for name in by:
        if name not in known:
            raise UserError(f"by: no run has a key {name!r}{suggest(name, known)}")
    groups: list[Group] = []
    for run in runs:
        same = [group for group in groups if group.runs[0].experiment == run.experiment]
        if not same:
            groups.append(Group({name: _name(run, name) for name in by}, [run]))
            continue
        twice = [other for other in same[0].runs if other.seed == run.seed]
        if twice:
            raise UserError(
                f"{twice[0].path} and {run.path} are the same experiment with the same seed "
                f"{run.seed}: it would count twice; leave one out"
            )
        same[0].runs.append(run)
    for group in groups:
        group.runs.sort(key=lambda run: run.seed)
    _tell_apart(groups)
    _compare_to_baseline(groups, baseline)
    return groups


def _check_comparable(runs: Sequence[MeasuredRun]) -> None:
    known = {run.val_images: run.path for run in runs if run.val_images is not None}
    if len(known) > 1:
        one, another, *_ = known.values()
        raise UserError(
            f"{one} and {another} were not measured on the same validation images: names or masks "
            "have changed in between; make a table of each"
        )
    first = runs[0]
    for run in runs[1:]:
        for key in {**first.measured_on, **run.measured_on}:
            mine, other = first.measured_on.get(key), run.measured_on.get(key)
            if mine != other and not (key == "data.root" and _same_place(mine, other)):
                raise UserError(
                    f"{first.path} ({key}: {mine}) and {run.path} ({key}: {other}) were not "
                    "measured on the same images in the same way; make a table of each"
                )


def _same_place(one: object, other: object) -> bool:
    """Whether two spellings of a path, such as one through a link, lead to one folder."""
    return os.path.realpath(str(one)) == os.path.realpath(str(other))


def _name(run: MeasuredRun, name: str) -> str:
    key = NAMES.get(name, name)
    if name == "student":
        return _student(run.settings)
    value = run.settings.get(key, "-")  # a term of one method need not exist in another
    if key == "epochs" and (before := run.settings.get("resumed_from.epochs")):
        return f"{value} (resumed from {before})"
    return "all" if key == "data.train_images" and not value else str(value)


def _student(settings: dict[str, Any]) -> str:
    """The backbone, with the family if that is not the default one."""
    family = str(settings.get("student.family", DEFAULT_FAMILY))
    backbone = settings[NAMES["student"]]
    if family == DEFAULT_FAMILY:
        return str(backbone)
    if has_own_name(family):
        return family
    from aicsd.models.sources import has_backbone  # takes seconds, which most tables do without

    return f"{family} {backbone}" if has_backbone(family) else family


def _tell_apart(groups: Sequence[Group]) -> None:
    for group in groups:
        alike = [other.runs[0].experiment for other in groups if other.names == group.names]
        keys = dict.fromkeys(key for experiment in alike for key in experiment)
        own = group.runs[0].experiment
        group.apart = {
            key: own.get(key) for key in keys if len({repr(e.get(key)) for e in alike}) > 1
        }


def _compare_to_baseline(groups: Sequence[Group], baseline: str | None) -> None:
    method = baseline or LABELS_ALONE
    known = [str(group.runs[0].settings["method"]) for group in groups]
    if not any(group.runs[0].is_of(method) for group in groups):
        if baseline is not None:
            raise UserError(f"baseline: no run of method {baseline!r}{suggest(baseline, known)}")
        return
    for group in groups:
        rest = group.without_method
        found = [
            other
            for other in groups
            if other.runs[0].is_of(method) and other.without_method == rest
        ]
        if not found or group.runs[0].is_of(method):
            continue
        if len(found) > 1:
            raise UserError(
                f"baseline: {found[0].runs[0].path} and {found[1].runs[0].path} are both of method "
                f"{method!r} with different settings ({', '.join(found[0].apart)}); leave one out"
            )
        before, after = found[0].scores, group.scores
        seeds = [seed for seed in group.seeds if seed in before.keys() & after.keys()]
        if seeds:
            values = [after[seed] - before[seed] for seed in seeds]
            group.difference = Difference(method, seeds, values)
            group.baseline = found[0]
