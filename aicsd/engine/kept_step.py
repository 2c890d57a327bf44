"""Steps with a non-finite loss: examined and stored in the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from aicsd.distiller import Distiller
from aicsd.engine.finite import NonFiniteLossError
from aicsd.engine.peers import EndedElsewhereError
from aicsd.engine.run_batches import RunBatches
from aicsd.engine.step import Training, step_seed
from aicsd.errors import UserError
from aicsd.files import atomic_path
from aicsd.runs import RunFolder
from aicsd.types import Batch, SegOutput

FORMAT = 1
TEACHER = "the teacher's output is not finite"


class Part(NamedTuple):
    """Values of one batch of a step."""

    names: tuple[str, ...]
    """Names of its images."""
    values: dict[str, float]
    """``loss`` and every term, unweighted."""
    cause: str
    """Origin of the first number that is not finite; "" if all are finite."""


def examine(
    distiller: Distiller, batch: Batch, progress: float, names: Sequence[str], seed: int
) -> Part:
    """The forward pass of one batch, as in training, without a trace in the networks."""
    with _untouched(distiller), torch.no_grad():
        torch.manual_seed(seed)
        distiller.train()
        values = {name: float(value) for name, value in distiller(batch, progress).items()}
        torch.manual_seed(seed)
        student = distiller.student(batch.image)
        teacher = distiller.teacher_output(batch)
    finite = all(torch.isfinite(torch.tensor(list(values.values()))))
    return Part(tuple(names), values, "" if finite else _cause(distiller, student, teacher))


def _cause(distiller: Distiller, student: SegOutput, teacher: SegOutput | None) -> str:
    for name, parameter in distiller.named_parameters():
        if not parameter.isfinite().all():
            return f"weights are not finite before it ({name})"
    if teacher is not None and not _is_finite(teacher):
        return TEACHER
    if not _is_finite(student):
        return "the student's output is not finite"
    return "the outputs of both networks are finite, the term is not"


def _is_finite(output: SegOutput) -> bool:
    maps = [output.logits, *output.features.values()]
    return all(bool(each.isfinite().all()) for each in maps)


@contextmanager
def _untouched(distiller: Distiller) -> Iterator[None]:
    """Mode, buffers and random numbers are at the end what they were."""
    training, kept = distiller.training, [buffer.clone() for buffer in distiller.buffers()]
    with torch.random.fork_rng(devices=()):
        try:
            yield
        finally:
            for buffer, before in zip(distiller.buffers(), kept, strict=True):
                buffer.copy_(before)
            distiller.train(training)


@contextmanager
def kept(folder: RunFolder, training: Training, batches: RunBatches) -> Iterator[None]:
    """Keep a step whose loss is not finite.

    Raises:
        UserError: there was one.
        EndedElsewhereError: there was one in another process.
    """
    try:
        yield
    except NonFiniteLossError as error:
        if error.rank != training.fabric.global_rank:
            raise EndedElsewhereError(f"see process {error.rank}") from error
        again = batches.again(error.step)
        raise keep_step(folder, training, again, error.step, batches.steps) from error


def keep_step(
    folder: RunFolder,
    training: Training,
    batches: Sequence[tuple[Batch, Sequence[str]]],
    step: int,
    total: int,
) -> UserError:
    """Write a step and what it needs into the run folder, and describe what happened.

    Args:
        folder: folder of the run.
        training: in the state before the step, or, if it is known only later, after it.
        batches: batches of the step and of this process, each with the names of its images.
        step: its number, from 0.
        total: steps of the run.

    Returns:
        The line that ends the run.
    """
    distiller, progress, fabric = training.distiller, step / total, training.fabric
    seed = step_seed(training.seed, step, fabric.global_rank)
    parts = []
    for batch, names in batches:
        with fabric.autocast():
            part = examine(distiller, batch.to(fabric.device), progress, names, seed)
        parts.append(part)
    content = {
        "format": FORMAT,
        "step": step,
        "progress": progress,
        "seed": seed,
        "precision": training.fabric.strategy.precision.precision,
        "classes": list(distiller.student.classes.names),
        "palette": [list(color) for color in distiller.student.classes.palette],
        "class_pixels": distiller.class_pixels,
        "names": [list(names) for _, names in batches],
        "batches": [batch._asdict() for batch, _ in batches],
        "distiller": distiller.state_dict() if training.finite.at_once else None,
    }
    with atomic_path(folder.nonfinite) as temporary:
        torch.save(content, temporary)
    worst = next((part for part in parts if part.cause), parts[0])
    values = ", ".join(f"{name} = {value:g}" for name, value in worst.values.items())
    advice = (
        "Give it another teacher"
        if worst.cause == TEACHER
        else "Lower optimizer.lr or a weight, set optimizer.clip or optimizer.skip_nonfinite, and "
        "continue with --resume and that flag"
    )
    return UserError(
        f"the loss is no longer finite at step {step + 1} of {total} ({values}; "
        f"{worst.cause or 'not so when it was repeated'}; images {_listed(worst.names)}). "
        f"aicsd debug replay {folder.nonfinite} repeats it. {advice}"
    )


def _listed(names: Sequence[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
