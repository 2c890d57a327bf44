"""A method is a recipe: terms with weights and schedules, read from a small YAML file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from torch import nn

from aicsd.errors import UserError, check_options, suggest
from aicsd.losses import CrossEntropyLoss, ICSDLoss, PixelKDLoss
from aicsd.schedules import SCHEDULES

TERMS: dict[str, type[nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "icsd": ICSDLoss,
    "pixel_kd": PixelKDLoss,
}
"""The loss behind every name that a recipe may use. A new one is a file in losses/ and a line."""

Resolution = Literal["native", "input"]
RECIPE_FOLDER = Path(__file__).parent
TermValue = int | float | str | bool


@dataclass(frozen=True)
class TermRecipe:
    """One weighted term.

    Args:
        weight: factor of the term, 0 or above.
        schedule: how the weight changes with progress: constant, rising (0 to 1) or falling.
        resolution: ``native`` compares the logits where the network computes them (stride 4);
            ``input`` upsamples them to the size of the crop first.
        options: settings of the loss, such as its temperature.
    """

    weight: float = 1.0
    schedule: str = "constant"
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
                "resolution": term.resolution,
                **_default_options(TERMS[name]),
                **term.options,
            }
            for name, term in self.terms.items()
        }


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
    common = {k: v for k, v in values.items() if k in ("weight", "schedule", "resolution")}
    options = {k: v for k, v in values.items() if k not in common}
    allowed = ["weight", "schedule", "resolution", *_default_options(TERMS[name])]
    for key in options:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, allowed)}")
    term = TermRecipe(**common, options=options)
    is_number = isinstance(term.weight, int | float) and not isinstance(term.weight, bool)
    if not is_number or not 0 <= term.weight < float("inf"):
        raise UserError(f"{where}: weight is {term.weight!r}; it is a number of 0 or above")
    if term.schedule not in list(SCHEDULES):
        raise UserError(f"{where}: unknown schedule {term.schedule!r}"
                        f"{suggest(str(term.schedule), SCHEDULES)}")  # fmt: skip
    if term.resolution not in get_args(Resolution):
        raise UserError(
            f"{where}: resolution is {term.resolution!r}; allowed are "
            f"{', '.join(get_args(Resolution))}"
        )
    for key, default in _default_options(TERMS[name]).items():
        value = options.get(key, default)
        numeric = isinstance(default, float) and isinstance(value, int)
        if type(value) is not type(default) and (not numeric or isinstance(value, bool)):
            raise UserError(f"{where}: {key} is {value!r}; it is a {type(default).__name__}")
    TERMS[name](**options)  # a loss refuses its own bad values
    return term


def _default_options(loss: type[nn.Module]) -> dict[str, TermValue]:
    return {
        name: parameter.default for name, parameter in inspect.signature(loss).parameters.items()
    }
