"""One training step of any method: frozen teacher + student + weighted terms -> losses.

Everything that differs between methods is in the recipe. Without a teacher this is plain training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.methods import Recipe
from aicsd.models import Segmenter
from aicsd.teacher import Teacher
from aicsd.terms import Term
from aicsd.types import Batch, SegOutput


class Distiller(nn.Module):
    """Student, terms and teacher in one module whose forward pass gives the losses.

    Args:
        student: the network to train.
        recipe: terms, weights and schedules.
        teacher: needed if a term of the recipe compares with it. It is not a submodule: it enters
            neither the optimizer nor a checkpoint.
        class_pixels: labelled pixels of each class in the training data, if the recipe needs them.

    Raises:
        UserError: the recipe needs a teacher and there is none, or a term cannot compare the two
            networks.
    """

    def __init__(
        self,
        student: Segmenter,
        recipe: Recipe,
        teacher: Teacher | None = None,
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.class_pixels = class_pixels
        if recipe.needs_teacher and teacher is None:
            raise UserError(f"method {recipe.name!r} needs a teacher: give --teacher RUN")
        self.student = student
        self.recipe = recipe
        self._teacher = (teacher,) if recipe.needs_teacher else (None,)
        self.recorded: Callable[[Tensor], SegOutput] | None = None
        """The student in training mode, where its passes are recorded."""
        self.terms = nn.ModuleDict(
            {
                name: Term(
                    name,
                    term,
                    student.maps,
                    teacher.maps if term.needs_teacher and teacher is not None else None,
                    class_pixels,
                )
                for name, term in recipe.active.items()
            }
        )

    @property
    def teacher(self) -> Teacher | None:
        return self._teacher[0]

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: images, masks and valid pixels.
            progress: part of training that is done, in [0, 1].

        Returns:
            Every term by name, unweighted and detached, and ``loss``: their weighted sum, with
            the graph.
        """
        student = (self.recorded or self.student)(batch.image)
        teacher = self.teacher_output(batch)
        values = {
            name: term(student, teacher, batch, progress) for name, term in self.terms.items()
        }
        total = weighted_sum(values, self.recipe.weights(progress))
        return {"loss": total, **{name: value.detach() for name, value in values.items()}}

    def teacher_output(self, batch: Batch) -> SegOutput | None:
        """Logits and features of the teacher, from its cache if the batch carries them."""
        if batch.teacher_logits is not None:
            return SegOutput(batch.teacher_logits, {}, align_corners=True)
        return self.teacher(batch.image) if self.teacher is not None else None


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of every value times its weight; a value without a weight is an error, not a zero."""
    return torch.stack([weights[name] * value for name, value in values.items()]).sum()
