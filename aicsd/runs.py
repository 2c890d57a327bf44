"""The one owner of a run folder: names of its files, claim, resume, and its results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aicsd.errors import UserError
from aicsd.files import (
    at_home,
    exclusive,
    is_leftover,
    read_json,
    read_json_lines,
    read_yaml_mapping,
    write_text,
)
from aicsd.run_settings import (
    HARMLESS_KEYS,
    PROCESSES,
    against_divergence,
    flatten,
    images_per_step,
    renamed,
)

MODEL_FILE = "model.safetensors"
OLD_MODEL_FILE = "student.safetensors"
"""Name of the trained network in runs of aicsd before 0.2."""
LOCK_FILE = ".lock"
LABELS_ALONE = "none"
"""The method that has no teacher, unless a term that needs one is added to it."""
REQUIRED = ("class_accuracy", "images", "miou", "parameters", "per_class_iou")
"""Metrics that every finished run has."""


class RunFolder:
    """The folder of one training.

    Args:
        path: path of the folder, which need not be there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(at_home(path))
        self.config = self.path / "config.yaml"
        self.inputs = self.path / "inputs.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "metrics.json"
        self.best = self.path / "best.safetensors"
        self.ics = self.path / "ics.safetensors"
        self.report = self.path / "report.html"
        self.loggers = self.path / "loggers.json"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.previous = self.checkpoint.with_name("previous.pt")
        self.processes = self.path / ".processes"
        self.nonfinite = self.path / "nonfinite.pt"
        self.image_counts = self.path / "image_counts.safetensors"

    @property
    def model(self) -> Path:
        """The trained network; it has another name in a run of an older version."""
        old, new = self.path / OLD_MODEL_FILE, self.path / MODEL_FILE
        return old if old.is_file() and not new.is_file() else new

    @contextmanager
    def claim(self, *, resume: bool) -> Iterator[None]:
        """Hold the folder for one training, from before its first file to its end.

        A folder in which nothing was written is removed again.

        Args:
            resume: resume the run in the folder; without it the folder must be new or empty.

        Raises:
            UserError: the folder holds something else, another training is writing into it, or it
                cannot be written to.
        """
        self.check_place(resume)
        place = self.path.absolute()
        new = [path for path in (place, *place.parents) if not path.exists()]
        try:
            with ExitStack() as held:
                self._enter(held)
                self.check_place(resume)  # another training may have been here meanwhile
                self._remove_leftovers()
                yield
        finally:
            for path in new:
                with suppress(OSError):  # it is not empty
                    path.rmdir()

    def _enter(self, held: ExitStack) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(self.path / LOCK_FILE))
        except BlockingIOError as error:
            raise UserError(
                f"run: {self.path} is in use by another training ({error}); wait for it to end, or "
                "choose another folder"
            ) from error
        except OSError as error:
            raise UserError(f"run: cannot write to {self.path}: {error.strerror}") from error

    def require_place(self) -> None:
        """Refuse to write if the folder of a training in progress is gone.

        Raises:
            UserError: it was moved or deleted.
        """
        if not self.config.is_file():
            raise UserError(
                f"run: {self.path} was moved or deleted during the training; to continue a "
                "moved one, give --run with its new path, and --resume"
            )

    def check_place(self, resume: bool) -> None:
        """Refuse to resume without a run, and to overwrite existing files.

        Raises:
            UserError: the folder does not suit.
        """
        if resume and not self.config.is_file():
            raise UserError(
                f"resume: there is no run in {self.path} (no {self.config.name}); name "
                "the folder of a run, or leave out --resume to start one"
            )
        # files of a training that was killed before it wrote its config
        ours = {LOCK_FILE, self.inputs.name, self.processes.name}
        if self.config.is_file():
            ours.clear()
        holds_files = self.path.is_dir() and any(
            path.name not in ours and not is_leftover(path) for path in self.path.iterdir()
        )
        if not resume and (holds_files or (self.path.exists() and not self.path.is_dir())):
            raise UserError(
                f"run: {self.path} exists; choose another folder, or add --resume to continue the "
                "run in it"
            )

    def _remove_leftovers(self) -> None:
        """Remove half-written files of killed trainings; a checkpoint's can be large."""
        shutil.rmtree(self.processes, ignore_errors=True)
        for folder in (self.path, self.checkpoint.parent):
            for path in folder.iterdir() if folder.is_dir() else ():
                if is_leftover(path):
                    path.unlink()

    def require_run(self) -> None:
        """Refuse a folder that no training has written.

        Raises:
            UserError: no folder, or no config in it.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run folder: no {self.config.name} in it")

    @property
    def is_finished(self) -> bool:
        """Whether the training has written its result."""
        return self.config.is_file() and self.result.is_file()

    def read(self) -> FinishedRun:
        """Config, result and log of a finished run.

        Raises:
            UserError: no run, not finished, or a file that cannot be read.
        """
        self.require_run()
        if not self.result.is_file():
            raise UserError(f"{self.path} is not a finished run: no {self.result.name} in it")
        return FinishedRun(
            self.path,
            self.read_config(),
            self.read_result(),
            read_json_lines(self.metrics),
            self.resumed_from,
        )

    def read_config(self) -> dict[str, Any]:
        """The settings of the run.

        Raises:
            UserError: a file that cannot be read, or that holds no settings of a run.
        """
        config = read_yaml_mapping(self.config)
        for key, kind in (("seed", int), ("data", dict)):
            if not isinstance(config.get(key), kind):
                raise UserError(f"{self.config} holds no settings of a run: {key} is missing")
        return renamed(config)

    def read_result(self) -> dict[str, Any]:
        """The metrics of the trained network.

        Raises:
            UserError: a file that cannot be read, or that lacks a metric.
        """
        result = read_json(self.result)
        missing = [name for name in REQUIRED if name not in result]
        if missing or not isinstance(result["per_class_iou"], dict):
            raise UserError(
                f"{self.result} has no {(missing or ['per_class_iou'])[0]}: it was not written by "
                "aicsd"
            )
        return result

    def teacher(self) -> str | None:
        """Reference of the network that this run was distilled from, if its config names one."""
        teacher = read_yaml_mapping(self.config).get("teacher") if self.config.is_file() else None
        return str(teacher) if teacher else None

    def save_config(self, settings: Mapping[str, Any]) -> None:
        """Write the complete settings, from which the run can be repeated.

        A teacher or a map of its classes in a file of this machine is kept as an absolute path, and
        that the run was resumed is not kept.
        """
        settings = {**settings, "resume": False}
        for key in ("teacher", "teacher_classes"):
            named = settings.get(key)
            if named is not None and Path(named).exists():
                settings[key] = str(Path(named).absolute())
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False), durable=True)

    def check_settings(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Refuse to resume the run with settings that would change its result.

        Args:
            settings: the complete new ones.
            defaults: values of settings that an older version did not have.

        Raises:
            UserError: no run, or a setting that differs and matters.
        """
        self.check_place(resume=True)
        before, now = flatten(self.read_config()), flatten(settings)
        known = flatten(defaults)
        before |= {key: known.get(key) for key in now.keys() - before.keys()}
        harmless = HARMLESS_KEYS | self._checked_by_content(before, now)
        if self.gets_longer(settings):
            harmless |= {"epochs"}
        if images_per_step(before) == images_per_step(now):
            harmless |= set(PROCESSES)
        if self.nonfinite.is_file():
            harmless |= set(filter(against_divergence, now))
        changed = [
            f"{key} was {before.get(key)!r} and now is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key not in harmless
        ]
        if changed:
            hint = ""
            if before.get("devices") != now.get("devices"):
                hint = (
                    f". It continues with another number of processes if {' x '.join(PROCESSES)} "
                    f"is {images_per_step(before)}"
                )
            raise UserError(
                f"resume: {self.path} was started with other settings: {'; '.join(changed[:4])}"
                f"{'; ...' if len(changed) > 4 else ''}. Repeat them, or choose another run folder"
                f"{hint}"
            )

    def _checked_by_content(self, before: dict[str, Any], now: dict[str, Any]) -> set[str]:
        """Keys that name files, where the content of the files is compared later."""
        teachers = [Path(str(values.get("teacher"))).absolute() for values in (before, now)]
        keys = {"teacher"} if self.inputs.is_file() or teachers[0] == teachers[1] else set()
        if self.inputs.is_file():  # a teacher is compared with its classes as the run sees them
            keys.add("teacher_classes")
        if before.get("teacher_cache") and now.get("teacher_cache"):
            keys.add("teacher_cache")
        return keys

    def gets_longer(self, settings: Mapping[str, Any]) -> bool:
        """Whether ``settings`` give a finished run more epochs."""
        return self.is_finished and self.read_config().get("epochs", 0) < settings["epochs"]

    @property
    def resumed_from(self) -> dict[str, str]:
        """Values that settings had before the run went on with others: ``{"epochs": "10, 20"}``.

        The result of such a run is not that of its config alone: its schedule was another.
        """
        found = read_json(self.inputs).get("resumed_from") if self.inputs.is_file() else None
        return found if isinstance(found, dict) else {}

    def reopen(self) -> None:
        """Remove the result of a finished run that gets longer; its model is replaced later."""
        for path in (self.report, self.result, self.image_counts):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class FinishedRun:
    """Config, result and log of a finished run.

    Args:
        path: its folder.
        config: config of ``config.yaml``.
        result: content of ``metrics.json``.
        lines: lines of ``metrics.jsonl``, in the order of the steps.
        resumed_from: as of :class:`RunFolder`.
    """

    path: Path
    config: dict[str, Any]
    result: dict[str, Any]
    lines: list[dict[str, Any]]
    resumed_from: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The config, with ``resumed_from``."""
        return {**self.config, "resumed_from": self.resumed_from}

    @property
    def command(self) -> str:
        """``train`` or ``distill``."""
        return "distill" if "student" in self.config else "train"

    @property
    def method(self) -> str:
        """Name of the method; ``none`` for a run of ``aicsd train``."""
        named = Path(str(self.config.get("method"))).stem
        return LABELS_ALONE if self.command == "train" else named

    @property
    def title(self) -> str:
        """``student alone``, ``student AICSD``; the folder of a run that has no method."""
        if self.command == "distill" and self.is_alone:
            return "student alone"
        return self.path.name if self.method == LABELS_ALONE else f"student {self.method.upper()}"

    @property
    def is_alone(self) -> bool:
        """Trained on labels only."""
        return learns_alone(self.method, self.result)

    @property
    def teacher(self) -> str | None:
        """Reference of its teacher, if it has one."""
        teacher = self.config.get("teacher")
        return str(teacher) if teacher else None


def learns_alone(method: str, result: Mapping[str, Any]) -> bool:
    """Whether a run had no teacher: its method has none, and none of its terms needed one.

    Args:
        method: name of the method.
        result: metrics of the run, which hold those of the teacher that it had.
    """
    return method == LABELS_ALONE and not result.get("teacher")
