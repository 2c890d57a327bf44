"""History of a student's ICS matrix: measured at each validation, stored in the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aicsd.errors import UserError, one_line
from aicsd.runs import RunFolder
from aicsd.tensor_files import read_tensors, write_tensors
from aicsd.visualization.views import FloatArray, ics_distance

HISTORY_IMAGES = 8
"""Images of the validation split that a matrix is the mean over."""
IMAGES, TEACHER = "images", "teacher"


@dataclass
class ICSHistory:
    """ICS matrices of one run on the same few images.

    Args:
        images: their names in the validation split.
        steps: (C, C) of the student by the step of the training; 0 is before the first one.
        teacher: (C, C) of its teacher, if it has one.
    """

    images: list[str]
    steps: dict[int, FloatArray] = field(default_factory=dict)
    teacher: FloatArray | None = None

    def distances(self, teacher: FloatArray) -> tuple[list[int], list[float]]:
        """Steps, and L_ICS to ``teacher`` (C, C) there."""
        return list(self.steps), [ics_distance(matrix, teacher) for matrix in self.steps.values()]


def write_history(run: Path, history: ICSHistory) -> None:
    """Write ``history`` into the run folder."""
    arrays = {str(step): matrix for step, matrix in history.steps.items()}
    if history.teacher is not None:
        arrays[TEACHER] = history.teacher
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    write_tensors(RunFolder(run).ics, tensors, IMAGES, json.dumps(history.images))


def read_history(run: Path) -> ICSHistory | None:
    """History that the run has written; None if there is none.

    Raises:
        UserError: a file that cannot be read.
    """
    path = RunFolder(run).ics
    if not path.is_file():
        return None
    try:
        tensors, text = read_tensors(path, IMAGES)
        images = json.loads(text or "null")
        arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
        teacher = arrays.pop(TEACHER, None)
        steps = {step: arrays[str(step)] for step in sorted(map(int, arrays))}
        return ICSHistory(list(images), steps, teacher)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(
            f"{path} cannot be read ({reason}); delete it to continue without it"
        ) from error


def shared_teacher(histories: Iterable[ICSHistory]) -> ICSHistory | None:
    """The first history with a teacher, which others on the same images are compared with too."""
    return next((history for history in histories if history.teacher is not None), None)
