"""A term: one loss on named maps of student and teacher, with the adapter between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from aicsd.errors import UserError, suggest
from aicsd.losses.adapters import IDENTITY, make_adapters
from aicsd.methods import TermRecipe
from aicsd.models import MapInfo, map_named, resize
from aicsd.types import LOGITS, Batch, SegOutput

Maps = Mapping[str, MapInfo]


class Term(nn.Module):
    """Everything that a term trains is inside: its adapters, and what its loss holds.

    Args:
        name: name of the term, for messages.
        recipe: the loss, the maps it reads, its options.
        student: declared maps of the student.
        teacher: declared maps of the teacher; None for a term on labels.
        class_pixels: labelled pixels of each class in the training data, where the loss needs them.

    Raises:
        UserError: a map that a network does not have, or widths that nothing bridges.
    """

    def __init__(
        self,
        name: str,
        recipe: TermRecipe,
        student: Maps,
        teacher: Maps | None,
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.recipe = name, recipe
        where = f"term {name!r}"
        widths = [
            (
                _channels(student, first, f"{where}: the student"),
                0 if teacher is None else _channels(teacher, second, f"{where}: the teacher"),
            )
            for first, second in zip(recipe.at_student, recipe.at_teacher, strict=True)
        ]
        pairs = {} if teacher is None else dict(zip(recipe.at_student, widths, strict=True))
        same = recipe.contract.same_channels
        self.adapters = make_adapters(where, recipe.adapter, pairs, same_channels=same)
        own, other = widths[0]
        own = own if recipe.adapter == IDENTITY else other
        self.loss = recipe.build_loss(where, own, other, student[LOGITS].channels, class_pixels)

    def forward(
        self, student: SegOutput, teacher: SegOutput | None, batch: Batch, progress: float
    ) -> Tensor:
        """The unweighted loss of one batch, a scalar with its graph.

        The maps of the student are resized to the input if the recipe has it so, those of the
        teacher to the student's.

        Args:
            student: output of the student.
            teacher: output of the teacher; None for a term on labels.
            batch: images, masks and valid pixels.
            progress: part of training that is done, in [0, 1].
        """
        wanted = self.recipe.contract.inputs
        own = [map_named(student, at, f"{self.name}: the student") for at in self.recipe.at_student]
        if self.recipe.resolution == "input":
            own = [resize(maps, batch.mask.shape[-2:], student.align_corners) for maps in own]
        inputs: dict[str, Any] = {}
        if "teacher" in wanted:
            assert teacher is not None
            named = [
                map_named(teacher, at, f"{self.name}: the teacher") for at in self.recipe.at_teacher
            ]
            targets = [
                resize(target, maps.shape[-2:], teacher.align_corners)
                for target, maps in zip(named, own, strict=True)
            ]
            own = [adapter(maps) for adapter, maps in zip(self.adapters, own, strict=True)]
            inputs["teacher"] = self._named(targets)
        inputs["student"] = self._named(own)
        for name in ("mask", "valid", "image"):
            inputs[name] = getattr(batch, name)
        inputs["progress"] = progress
        value: Tensor = self.loss(**{name: inputs[name] for name in wanted})
        return value

    def _named(self, maps: list[Tensor]) -> Tensor | dict[str, Tensor]:
        """One map, or several by the student's names where the recipe lists them."""
        if not self.recipe.lists_maps:
            return maps[0]
        return dict(zip(self.recipe.at_student, maps, strict=True))


def _channels(maps: Maps, name: str, owner: str) -> int:
    if name not in maps:
        raise UserError(f"{owner} has no feature {name!r}{suggest(name, maps)}")
    return maps[name].channels
