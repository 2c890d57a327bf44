"""Gradient of a term on the map that it reads, relative to the labels': the basis of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from aicsd.methods import Recipe, TermRecipe, load_recipe
from aicsd.models import Segmenter, map_named
from aicsd.runs import LABELS_ALONE
from aicsd.teacher import Teacher
from aicsd.terms import Term
from aicsd.types import Batch, SegOutput

LABELS = "cross_entropy"
LEARNING_STEPS = 40
LEARNING_RATE = 3e-3
"""Learning rate of the networks of a term before it is measured: the gradient of an untrained
adapter, generator or critic is small and has no direction."""


class Scale(NamedTuple):
    """Means over some batches."""

    value: float
    """Value of the term, unweighted."""
    norm: float
    """L2 norm of its gradient on the map that it reads."""
    ratio: float
    """Norm relative to that of the cross entropy's gradient on the same map."""


def term_scales(
    student: Segmenter,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    terms: Mapping[str, tuple[str, TermRecipe]],
    class_pixels: Sequence[int] | None = None,
) -> dict[str, Scale]:
    """Size of terms and their gradients, once the networks of a term have been trained.

    Args:
        student: is left in training mode.
        teacher: on the same device; None where no term needs it.
        batches: on the same device.
        terms: name and recipe of each, by label.
        class_pixels: labelled pixels of each class in the training data, if a term needs them.
    """
    labels = load_recipe(LABELS_ALONE).terms[LABELS]
    found: dict[str, list[Scale]] = {}
    student.train()
    torch.manual_seed(0)
    modules = {}
    for label, (name, term) in terms.items():
        maps_there = None if teacher is None or not term.needs_teacher else teacher.maps
        module = Term(name, term, student.maps, maps_there, class_pixels)
        modules[label] = module.to(batches[0].image.device)
    with torch.no_grad():
        outputs = [
            (student(batch.image), None if teacher is None else teacher(batch.image), batch)
            for batch in batches
        ]
    for module in modules.values():
        _learn(module, outputs)
    for batch in batches:
        torch.manual_seed(0)
        output = student(batch.image)
        target = None if teacher is None else teacher(batch.image)
        by_labels = Term(LABELS, labels, student.maps, None)(output, None, batch, 0.5)
        for label, (_, term) in terms.items():
            value = modules[label](output, target, batch, 0.5)
            maps = map_named(output, term.at_student[0], label)
            norm, unit = (
                torch.autograd.grad(each, maps, retain_graph=True)[0].norm().item()
                for each in (value, by_labels)
            )
            found.setdefault(label, []).append(Scale(value.item(), norm, unit))
    means = {}
    for label, scales in found.items():
        value, norm, unit = (sum(column) / len(scales) for column in zip(*scales, strict=True))
        means[label] = Scale(value, norm, norm / unit)
    return means


def _learn(term: Term, outputs: Sequence[tuple[SegOutput, SegOutput | None, Batch]]) -> None:
    """Train what a term holds, and nothing else, on fixed outputs."""
    own = [each for each in term.parameters() if each.requires_grad]
    if not own:
        return
    optimizer = torch.optim.AdamW(own, lr=LEARNING_RATE)
    for step in range(LEARNING_STEPS):
        output, target, batch = outputs[step % len(outputs)]
        optimizer.zero_grad()
        term(output, target, batch, 0.5).backward()
        optimizer.step()
    optimizer.zero_grad()


def matched_weights(
    student: Segmenter,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    recipe: Recipe,
    class_pixels: Sequence[int] | None = None,
) -> dict[str, float]:
    """Weights with which all terms beside the labels' cross entropy together pull as hard as it.

    Args:
        student: as it starts; is left in training mode.
        teacher: on the same device; None where no term needs it.
        batches: on the same device.
        recipe: its active terms get the weights, with two digits.
        class_pixels: as for :func:`term_scales`.
    """
    terms = {name: (name, t) for name, t in recipe.active.items() if t.contract.name != LABELS}
    scales = term_scales(student, teacher, batches, terms, class_pixels)
    return {
        name: float(f"{1 / (scale.ratio * len(terms)):.2g}")
        for name, scale in scales.items()
        if scale.norm > 0
    }
