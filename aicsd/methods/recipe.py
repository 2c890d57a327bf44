"""A method is a recipe: terms with weights and schedules, read from a small YAML file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from torch import nn

from aicsd.errors import UserError, check_options, suggest
from aicsd.losses import (
    AttentionLoss,
    CorrelationLoss,
    CrossEntropyLoss,
    ICSDLoss,
    PairwiseLoss,
    PixelKDLoss,
)
from aicsd.schedules import SCHEDULES

TERMS: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "icsd": ICSDLoss,
    "pixel_kd": PixelKDLoss,
    "attention": AttentionLoss,
    "pairwise": PairwiseLoss,
    "correlation": CorrelationLoss,
}
"""The loss behind every name that a recipe may use. A new one is a file in losses/ and a line."""

Resolution = Literal["native", "input"]
LOGITS = "logits"
RECIPE_FOLDER = Path(__file__).parent
COMMON_KEYS = ("weight", "schedule", "at", "resolution")  # "at": YAML reads "on" as true
TermValue = int | float | str | bool


@dataclass(frozen=True)
class TermRecipe:
    """One weighted term.

    Args:
        weight: factor of the term, 0 or above.
        schedule: how the weight changes with progress: constant, rising (0 to 1) or falling.
        at: the map that the term reads: ``logits``, or a feature of the network by its name
            (DeepLabV3+: low_level, high_level, aspp, decoder).
        resolution: ``native`` compares maps where the networks compute them (logits: stride 4; a
            teacher of another stride is resized to the student); ``input`` upsamples the logits to
            the size of the crop first.
        options: settings of the loss, such as its temperature.
    """

    weight: float = 1.0
    schedule: str = "constant"
    at: str = LOGITS
    resolution: Resolution = "native"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A method: its terms by name."""

    name: str
    terms: dict[str, TermRecipe]

    @property
    def needs_teacher(self) -> bool:
        return any(TERMS[name].target == "teacher" for name in self.terms)  # type: ignore[attr-defined]

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of every term at ``progress`` in [0, 1]."""
        return {
            name: term.weight * SCHEDULES[term.schedule](progress)
            for name, term in self.terms.items()
        }

    def build_losses(self) -> dict[str, nn.Module]:
        return {name: TERMS[name](**term.options) for name, term in self.terms.items()}

    def to_dict(self) -> dict[str, dict[str, TermValue]]:
        """Every key of every term, with the defaults of the losses: the complete recipe."""
        return {
            name: {
                "weight": term.weight,
                "schedule": term.schedule,
                "at": term.at,
                "resolution": term.resolution,
                **_settings(TERMS[name](**term.options)),
            }
            for name, term in self.terms.items()
        }

    def with_numerics(self, numerics: str) -> Recipe:
        """This recipe with ``numerics`` for every term.

        With ``released``, terms on logits move to the input's resolution, as in the published code.
        An option whose default follows the numerics (a reduction, a patch) takes its default;
        weights stay, although their meaning changes.

        Raises:
            UserError: unknown numerics, or a term with an option that they do not have.
        """
        return replace(
            self,
            terms={name: _change_numerics(name, t, numerics) for name, t in self.terms.items()},
        )


def list_methods() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def load_recipe(
    method: str, overrides: Mapping[str, Mapping[str, TermValue]] | None = None
) -> Recipe:
    """The recipe of a method.

    Args:
        method: one of :func:`list_methods`, or the path of a YAML file of the same form.
        overrides: changes by term and key, such as ``{"icsd": {"weight": 50}}``; a term that the
            recipe does not have is added.

    Raises:
        UserError: unknown method, term, key or value.
    """
    path = RECIPE_FOLDER / f"{method}.yaml"
    if not path.is_file():
        path = Path(method)
        if path.suffix not in (".yaml", ".yml"):
            raise UserError(f"unknown method {method!r}{suggest(method, list_methods())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("terms"), dict):
        raise UserError(f"recipe {path} must have the key 'terms' with a mapping of terms")
    check_options(f"recipe {path}", _recipe_keys, content)
    for name, values in content["terms"].items():
        if not isinstance(values, dict | None):
            raise UserError(f"recipe {path}: term {name!r} is {values!r}; it must be a mapping")
    merged = {name: dict(values or {}) for name, values in content["terms"].items()}
    for name, values in (overrides or {}).items():
        merged.setdefault(name, {}).update(values)
    terms = {name: _parse_term(f"term {name!r}", name, values) for name, values in merged.items()}
    if not terms:
        raise UserError(f"recipe {path} has no terms: there is nothing to train on")
    return Recipe(Path(method).stem, terms)


def _recipe_keys(terms: object) -> None:
    """The keys of a recipe file, as a signature."""


def _parse_term(where: str, name: str, values: Mapping[str, Any]) -> TermRecipe:
    if name not in TERMS:
        raise UserError(f"unknown term {name!r}{suggest(name, TERMS)}")
    loss: Any = TERMS[name]
    defaults = _settings(loss())
    common = {k: v for k, v in values.items() if k in COMMON_KEYS}
    options = {k: v for k, v in values.items() if k not in common}
    allowed = [*COMMON_KEYS, *defaults]
    for key in options:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, allowed)}")
    term = TermRecipe(**{"at": loss.at, **common}, options=options)
    is_number = isinstance(term.weight, int | float) and not isinstance(term.weight, bool)
    if not is_number or not 0 <= term.weight < float("inf"):
        raise UserError(f"{where}: weight is {term.weight!r}; it is a number of 0 or above")
    if term.schedule not in list(SCHEDULES):
        raise UserError(f"{where}: unknown schedule {term.schedule!r}"
                        f"{suggest(str(term.schedule), SCHEDULES)}")  # fmt: skip
    _check_place(where, term, loss.target)
    for key, default in defaults.items():
        value = options.get(key, default)
        numeric = isinstance(default, float) and isinstance(value, int)
        if type(value) is not type(default) and (not numeric or isinstance(value, bool)):
            raise UserError(f"{where}: {key} is {value!r}; it is a {type(default).__name__}")
    _build(where, name, options)
    return term


def _check_place(where: str, term: TermRecipe, target: str) -> None:
    if not isinstance(term.at, str):
        raise UserError(f"{where}: at is {term.at!r}; it is logits or the name of a feature")
    if term.at != LOGITS and target == "labels":
        raise UserError(f"{where}: at is {term.at!r}; a term on labels reads the logits only")
    if term.resolution not in get_args(Resolution):
        raise UserError(
            f"{where}: resolution is {term.resolution!r}; allowed are "
            f"{', '.join(get_args(Resolution))}"
        )
    if term.at != LOGITS and term.resolution == "input":
        raise UserError(
            f"{where}: resolution is 'input' on the feature {term.at!r}; features are compared "
            "where they are: set resolution to native"
        )


def _change_numerics(name: str, term: TermRecipe, numerics: str) -> TermRecipe:
    parameters = inspect.signature(TERMS[name]).parameters
    kept = {
        key: value for key, value in term.options.items() if parameters[key].default is not None
    }
    options = {**kept, "numerics": numerics}
    _build(f"term {name!r}", name, options)
    at_input = numerics == "released" and term.at == LOGITS
    return replace(term, options=options, resolution="input" if at_input else term.resolution)


def _build(where: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    """The loss, which refuses its own bad values."""
    try:
        return TERMS[name](**options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _settings(loss: nn.Module) -> dict[str, TermValue]:
    """Every option of a loss: it keeps each under the name that its constructor has for it."""
    return {name: getattr(loss, name) for name in inspect.signature(type(loss)).parameters}
