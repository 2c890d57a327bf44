"""One training step of any method: frozen teacher + student + weighted terms -> losses.

Everything that differs between methods is in the recipe. Without a teacher this is plain training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aicsd.data.base import Classes
from aicsd.errors import UserError
from aicsd.methods import Recipe, TermRecipe
from aicsd.models import Segmenter, as_output, map_named, resize
from aicsd.types import Batch, SegOutput


class Teacher(nn.Module):
    """A frozen network: always in evaluation mode, no gradient, its classes in student order.

    Args:
        model: a trained segmenter; it normalises its own input. Its parameters get frozen.
        classes: of the student. The teacher may know more of them, in any order.

    Raises:
        UserError: a class that the teacher does not know.
    """

    def __init__(self, model: Segmenter, classes: Classes) -> None:
        super().__init__()
        if model.classes.names != classes.names:
            unknown = [name for name in classes.names if name not in model.classes.names]
            if unknown:
                raise UserError(
                    f"the teacher does not know the classes {unknown}; it knows "
                    f"{list(model.classes.names)}: train it on the same classes"
                )
            order = [model.classes.names.index(name) for name in classes.names]
            net = _SelectClasses(model.net, order)
            model = Segmenter(net, classes, model.input_mean, model.input_std)
        self.model = model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 -> logits in the student's class order, without autograd."""
        output: SegOutput = self.model(image)
        return output


class _SelectClasses(nn.Module):
    """A network with some of its classes, in another order."""

    order: Tensor

    def __init__(self, net: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", torch.tensor(order))

    def forward(self, image: Tensor) -> SegOutput:
        output = as_output(self.net(image))
        return output._replace(logits=output.logits[:, self.order])


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
        value = loss(maps, resize(target, size), inside=batch.inside)
    return value


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of every value times its weight; a value without a weight is an error, not a zero."""
    return torch.stack([weights[name] * value for name, value in values.items()]).sum()
