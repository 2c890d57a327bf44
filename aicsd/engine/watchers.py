"""Records beside the training: the teacher's score, pictures, matrices of the terms.

The loop calls every watcher before the first step and at each validation. Which watchers a run has
follows from its networks and terms: a loss names what is worth recording in ``watch``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aicsd.data.protocol import SegDataset
from aicsd.distiller import Distiller
from aicsd.engine import sanity
from aicsd.engine.checkpoint import RunState
from aicsd.engine.reporting import RunLogger, score_text
from aicsd.engine.sanity import check_classes, check_headroom, check_teacher, find_headroom
from aicsd.engine.step import Training
from aicsd.errors import UserError
from aicsd.evaluation import Metrics
from aicsd.evaluation.alignment import CLEAR, alignment, misalignment
from aicsd.images import UInt8Array
from aicsd.models import Segmenter
from aicsd.runs import RunFolder
from aicsd.visualization.ics_history import HISTORY_IMAGES, ICSHistory, read_history, write_history
from aicsd.visualization.matrices import matrix_sheet
from aicsd.visualization.panels import contact_sheet
from aicsd.visualization.views import ics_distance, predict_views, shown_indices

PICTURE_IMAGES = 3
ALIGNMENT_IMAGES = 8
ICS_DISTANCE = "val/ics_distance"


@dataclass(frozen=True)
class Watched:
    """A run as its watchers see it.

    Args:
        folder: folder of the run.
        training: student, teacher and optimizer.
        state: step and scores so far.
        val_data: the validation split.
        logger: where figures and pictures go.
        evaluate: measures a network on the validation split, on all processes together.
        config: settings of the run, as plain data.
        total: steps of the whole run.
    """

    folder: RunFolder
    training: Training
    state: RunState
    val_data: SegDataset
    logger: RunLogger
    evaluate: Callable[[Segmenter, RunLogger, str], Metrics]
    config: Mapping[str, Any]
    total: int

    @property
    def is_first_process(self) -> bool:
        return self.training.fabric.is_global_zero


class Watcher(Protocol):
    """Records something beside the training."""

    def on_start(self, run: Watched) -> None:
        """Called before the first step of this process; the run may be a resumed one."""

    def on_validation(self, run: Watched) -> None:
        """Called after each validation has been logged."""


class TeacherScore:
    """Evaluates the teacher before the first step, so that a wrongly loaded one is noticed.

    One that is no better than guessing or than the student alone is refused, unless the run's
    config has ``force_teacher``. In a benchmark, it is not compared with the student alone.
    """

    def on_start(self, run: Watched) -> None:
        teacher = run.training.distiller.teacher
        if teacher is None or run.state.teacher:
            return
        metrics = run.evaluate(teacher.model, run.logger, "measuring the teacher")
        run.state.teacher = metrics.to_dict()
        run.logger.say(f"teacher val mIoU {score_text(metrics.miou, why=True)}")
        forced = bool(run.config.get("force_teacher"))
        warning = check_teacher(metrics.miou, metrics.confusion, forced, run.total)
        if warning is not None:
            run.logger.say(warning)
        if run.is_first_process:
            for line in (
                *check_classes(metrics.confusion, teacher.model.classes.names),
                *self._misalignment(run, teacher.model),
            ):
                run.logger.say(line)
            headroom = find_headroom(run.folder.path, run.config, metrics.miou)
            if headroom is not None:
                if run.training.distiller.recipe.needs_teacher:
                    compared = bool(run.config.get("in_benchmark"))
                    check_headroom(headroom, forced or compared, run.total)
                run.logger.say(str(headroom))

    @staticmethod
    def _misalignment(run: Watched, model: Segmenter) -> list[str]:
        """Warnings about shifts, channel order or normalisation of the teacher; none in a trial."""
        if run.total < sanity.TRIAL_STEPS or getattr(run.val_data, "labels_by", None):
            return []
        crop = int(run.config["data"]["augment"]["crop"])
        count = min(ALIGNMENT_IMAGES, len(run.val_data.labelled))
        try:
            with run.logger.counting("checking the teacher", count) as advance:
                variants = alignment(model, run.val_data, count, crop, lambda: advance(1))
        except UserError:  # no labels, or images that are too small for it
            return []
        line = misalignment(variants, CLEAR)
        return [] if line is None else [f"warning: {line}"]

    def on_validation(self, run: Watched) -> None:
        pass


class Pictures:
    """Logs image, labels and prediction of a few validation images."""

    def on_start(self, run: Watched) -> None:
        pass

    def on_validation(self, run: Watched) -> None:
        if len(run.val_data):
            run.logger.picture(run.state.step, "val/pictures", lambda: self._draw(run))

    @staticmethod
    def _draw(run: Watched) -> UInt8Array:
        samples = [
            run.val_data.read(index) for index in shown_indices(run.val_data, PICTURE_IMAGES)
        ]
        return contact_sheet(run.training.final, samples, run.val_data.classes)


class ICSMatrices:
    """Keeps the ICS matrix on a few validation images, and logs its distance to the teacher's."""

    def on_start(self, run: Watched) -> None:
        if run.state.step == 0:
            self.on_validation(run)

    def on_validation(self, run: Watched) -> None:
        if not (run.is_first_process and len(run.val_data)):
            return
        indices = shown_indices(run.val_data, HISTORY_IMAGES)
        samples = [run.val_data.read(index) for index in indices]
        step, teacher = run.state.step, run.training.distiller.teacher
        path = run.folder.path
        history = read_history(path) or ICSHistory([run.val_data.names[i] for i in indices])
        # entries of later steps come from an interrupted run
        history.steps = {at: matrix for at, matrix in history.steps.items() if at < step}
        history.steps[step] = predict_views(run.training.final, samples).ics
        if teacher is not None and history.teacher is None:
            history.teacher = predict_views(teacher.model, samples).ics
        write_history(path, history)
        shown = [history.steps[step]]
        if history.teacher is not None:
            shown.insert(0, history.teacher)
            distance = ics_distance(history.steps[step], history.teacher)
            run.logger.scalars(step, {ICS_DISTANCE: distance})
        run.logger.picture(step, "val/ics", lambda: matrix_sheet(shown))


WATCHERS: dict[str, Callable[[], Watcher]] = {"ics_matrix": ICSMatrices}
"""The watcher behind every name that a loss may give in ``watch``."""


def watchers_of(distiller: Distiller) -> list[Watcher]:
    """The watchers of a run: of every run, and those that its terms name."""
    terms = distiller.recipe.active.values()
    named = {name for term in terms for name in getattr(term.contract.loss, "watch", ())}
    return [TeacherScore(), *(WATCHERS[name]() for name in sorted(named)), Pictures()]
