"""Savings by other settings of a config: estimated or measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

from aicsd.benchmark.settings import CostConfig
from aicsd.methods import Recipe
from aicsd.types import Runtime


@dataclass(frozen=True)
class RunTime:
    """Seconds of the whole run, by part."""

    steps: int
    training: float
    validations: int
    validation: float
    """All validations of the student."""
    teacher: float
    """One validation of the teacher, before the first step."""

    @property
    def total(self) -> float:
        return self.training + self.validation + self.teacher


@dataclass(frozen=True)
class Switch:
    """A setting, and what it would change."""

    setting: str
    step: float | None
    """Seconds of a step with it; None if it leaves the step alone."""
    saved: float
    """Part of the run's time (of the step's, where that is not known); below 0: it costs more."""
    how: str


def of_step(
    setting: str, seconds: float, parts: Mapping[str, float], run: RunTime | None, how: str
) -> Switch:
    """A setting with which a step takes ``seconds``."""
    share = 1.0 if run is None else run.training / run.total
    return Switch(setting, seconds, share * (1 - seconds / sum(parts.values())), how)


def estimated_switches(
    config: CostConfig, parts: Mapping[str, float], load: float, run: RunTime | None
) -> list[Switch]:
    """Savings that follow from the parts of a step, without measuring again.

    Args:
        config: as it was measured.
        parts: seconds of a step by part.
        load: seconds in which one process loads the batches of a step.
        run: the whole run, if it is known.
    """
    step = sum(parts.values())
    found = []
    if config.teacher_cache is None and config.recipe.needs_teacher:
        how = "from the split; making the cache is not in it"
        found.append(of_step("teacher_cache FOLDER", step - parts["teacher"], parts, run, how))
    computing = step - parts["data"]
    workers = math.ceil(load / computing)
    if workers > config.data.workers:
        how = (
            f"from the split; needs {workers} idle cores"
            if workers > 1
            else ("from the split; needs an idle core")
        )
        found.append(of_step(f"data.workers {workers}", computing, parts, run, how))
    if run is not None and run.validations > 1:
        saved = run.validation * (1 - 1 / run.validations) / run.total
        how = "from the split; no best.safetensors but the last"
        found.append(Switch("val_every 0", None, saved, how))
    return found


def step_variants(config: CostConfig, device: str) -> dict[str, CostConfig]:
    """Settings that change the computation of a step, by what to write; to be measured."""
    variants = {}
    if config.recipe.needs_teacher and config.teacher_runtime == "eager":
        runtimes: list[Runtime] = ["compiled"] if device != "cpu" else []
        if device == "cpu" and find_spec("openvino") and not _reads_features(config.recipe):
            runtimes.append("openvino")
        for runtime in runtimes:
            variants[f"teacher_runtime {runtime}"] = replace(config, teacher_runtime=runtime)
    if config.precision == "32-true":
        variants["precision bf16-mixed"] = replace(config, precision="bf16-mixed")
    for name in _at_input(config.recipe):
        terms = {**config.terms, name: {**config.terms.get(name, {}), "resolution": "native"}}
        variant = replace(config, terms=terms)
        if name not in _at_input(variant.recipe):  # the released protocol insists on the input's
            variants[f"terms.{name}.resolution native"] = variant
    return variants


def _reads_features(recipe: Recipe) -> bool:
    return any(term.reads_features for term in recipe.terms.values())


def _at_input(recipe: Recipe) -> list[str]:
    return [name for name, term in recipe.terms.items() if term.resolution == "input"]
