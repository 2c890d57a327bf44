"""One training step of any method: frozen teacher + student + weighted terms -> losses.

Everything that differs between methods is in the recipe. Without a teacher this is plain training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aicsd.errors import UserError
from aicsd.methods import Recipe, TermRecipe
from aicsd.models import Segmenter, map_named, resize
from aicsd.teacher import Teacher
from aicsd.types import Batch, SegOutput


class Distiller(nn.Module):
    """Student, recipe and teacher in one module whose forward pass gives the losses.

    Args:
        student: the network to train.
        recipe: terms, weights and schedules.
        teacher: needed if a term of the recipe compares with it. It is no submodule: it enters
            neither the optimizer nor a checkpoint.

    Raises:
        UserError: the recipe needs a teacher and there is none.
    """

    def __init__(self, student: Segmenter, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__()
        if recipe.needs_teacher and teacher is None:
            raise UserError(f"method {recipe.name!r} needs a teacher: give --teacher RUN")
        self.student = student
        self.recipe = recipe
        self.terms = nn.ModuleDict(recipe.build_losses())
        self._teacher = (teacher,) if recipe.needs_teacher else (None,)

    @property
    def teacher(self) -> Teacher | None:
        return self._teacher[0]

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            batch: images, masks and where they are inside the image.
            progress: part of training that is done, in [0, 1].

        Returns:
            Every term by name, unweighted and detached, and ``loss``: their weighted sum, with
            the graph.
        """
        student = self.student(batch.image)
        teacher = self.ask_teacher(batch)
        values = {
            name: term_value(name, self.recipe.terms[name], loss, student, teacher, batch)
            for name, loss in self.terms.items()
        }
        total = weighted_sum(values, self.recipe.weights(progress))
        return {"loss": total, **{name: value.detach() for name, value in values.items()}}

    def ask_teacher(self, batch: Batch) -> SegOutput | None:
        """What the teacher says about a batch: from its cache if the batch brings it along."""
        if batch.teacher_logits is not None:
            return SegOutput(batch.teacher_logits, {})
        return self.teacher(batch.image) if self.teacher is not None else None


def term_value(
    name: str,
    term: TermRecipe,
    loss: nn.Module,
    student: SegOutput,
    teacher: SegOutput | None,
    batch: Batch,
) -> Tensor:
    """One loss, unweighted, on the maps and at the resolution that its recipe names."""
    maps = map_named(student, term.at, f"term {name!r}: the student")
    height, width = (batch.mask if term.resolution == "input" else maps).shape[-2:]
    size = (height, width)
    maps = resize(maps, size)
    if loss.target == "labels":
        value: Tensor = loss(maps, batch.mask)
    else:
        assert teacher is not None
        target = map_named(teacher, term.at, f"term {name!r}: the teacher")
        value = loss(maps, resize(target, size), valid=batch.valid)
    return value


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of every value times its weight; a value without a weight is an error, not a zero."""
    return torch.stack([weights[name] * value for name, value in values.items()]).sum()
