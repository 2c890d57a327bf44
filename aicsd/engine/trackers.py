"""Experiment trackers: TensorBoard, W&B and MLflow record metrics and pictures of a run."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aicsd.files import write_text
from aicsd.images import UInt8Array
from aicsd.runs import RunFolder

PROJECT = __name__.partition(".")[0]
"""The package: what the runs are kept together under."""


class Tracker(Protocol):
    """One place that figures go to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, image: UInt8Array) -> None:
        """``image`` is (H, W, 3) RGB."""

    def close(self, *, finished: bool) -> None: ...


def open_trackers(
    names: list[str], run: Path, settings: Mapping[str, Any], first: int
) -> list[Tracker]:
    """The places to log to.

    Args:
        names: result of :func:`aicsd.run_config.logger_names`.
        run: the run folder.
        settings: settings of the run, for those that show them beside the curves.
        first: first step that is logged again; entries from there on are of an interrupted run.
    """
    builders: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]]
    builders = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
    return [builders[name](run, first, settings) for name in names]


def _wait_for_next_second(run: Path) -> None:
    """Let the name of a new event file come after those of the folder.

    TensorBoard reads them by name, which begins with the second; within one second a file of a
    resumed run may come before the file that it continues.
    """
    seconds = [
        int(path.name.split(".")[3])
        for path in run.glob("events.out.tfevents.*")
        if path.name.split(".")[3].isdigit()
    ]
    while seconds and 0 <= max(seconds) - int(time.time()) < 2:  # more: of another clock
        time.sleep(0.05)


class _TensorBoard:
    def __init__(self, run: Path, first: int, settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_next_second(run)
        self._hook = threading.excepthook
        threading.excepthook = self._leave_out_own
        self._board = SummaryWriter(str(run), purge_step=first)

    def _leave_out_own(self, failure: threading.ExceptHookArgs) -> None:
        # a failure of its writing thread is raised again by the next call
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8Array) -> None:
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self, *, finished: bool) -> None:  # noqa: ARG002
        try:
            self._board.close()
        finally:
            threading.excepthook = self._hook


class _WandB:
    def __init__(self, run: Path, first: int, settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=PROJECT,
            name=run.name,
            dir=str(run),
            config=dict(settings),
            id=_known_id(run, "wandb"),
            resume="allow",
        )
        _keep_id(run, "wandb", self._run.id)
        # a resumed run repeats steps that were logged before the cut; W&B refuses those of its
        # own counter, not those of an axis
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, image: UInt8Array) -> None:
        self._run.log({name: self._wandb.Image(image), "step": step})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    def __init__(self, run: Path, first: int, settings: Mapping[str, Any]) -> None:  # noqa: ARG002
        import mlflow

        self._client: Any = mlflow.tracking.MlflowClient()
        known = _known_id(run, "mlflow")
        if known is None:
            known = self._create(run)
            for name, value in settings.items():
                self._client.log_param(known, name, value)
            _keep_id(run, "mlflow", known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known

    def _create(self, run: Path) -> str:
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        created: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        return created

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, _as_mlflow_name(name), value, step=step)

    def picture(self, step: int, name: str, image: UInt8Array) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}-{step}.png")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


def _as_mlflow_name(name: str) -> str:
    """``loss`` -> ``loss/total``, for a name is a file of its store, and loss/kd needs a folder.

    Other characters than these are refused there; a class may be called ``person (sitting)``.
    """
    return "loss/total" if name == "loss" else re.sub(r"[^\w/.\- :]", "_", name)


def _ids(run: Path) -> dict[str, str]:
    path = RunFolder(run).loggers
    found: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _known_id(run: Path, name: str) -> str | None:
    """The id under which a resumed run was logged."""
    return _ids(run).get(name)


def _keep_id(run: Path, name: str, value: str) -> None:
    write_text(RunFolder(run).loggers, json.dumps({**_ids(run), name: value}) + "\n")
