"""A method is a recipe: terms with weights and schedules, read from a small YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from aicsd.errors import UserError, suggest
from aicsd.losses.adapters import ADAPTERS, IDENTITY
from aicsd.methods.contract import (
    CHANNELS,
    CLASS_PIXELS,
    LossContract,
    Losses,
    contract_of,
    known_losses,
)
from aicsd.methods.shipped import RECIPE_FOLDER, list_methods
from aicsd.schedules import SCHEDULES
from aicsd.types import LOGITS
from aicsd.yaml_file import read_yaml

Resolution = Literal["native", "input"]
COMMON_KEYS = ("loss", "weight", "schedule", "at", "resolution", "adapter")
"""Keys of every term. ``at`` and not ``on``, which YAML reads as true."""


@dataclass(frozen=True)
class TermRecipe:
    """One weighted term.

    Args:
        contract: contract of its loss.
        weight: factor of the term, 0 or above; 0 switches it off.
        schedule: change of the weight with progress: constant, rising (0 to 1) or falling.
        at: the map that the term compares: ``logits`` or a map of the network by its name; a list
            of them where the loss compares several; or a mapping with ``student`` and ``teacher``.
        resolution: ``native`` compares maps where the networks compute them (the teacher's are
            resized to the student's); ``input`` upsamples the logits to the crop first.
        adapter: network between the student's map and the teacher's: one of ``ADAPTERS``.
        options: settings of the loss, such as its temperature.
        loss: the loss with these options; None if it depends on the channels of the maps.
    """

    contract: LossContract
    weight: float = 1.0
    schedule: str = "constant"
    at: Any = LOGITS
    resolution: Resolution = "native"
    adapter: str = IDENTITY
    options: dict[str, Any] = field(default_factory=dict)
    loss: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def at_student(self) -> tuple[str, ...]:
        """Names of the student's maps."""
        return _names(self.at["student"] if isinstance(self.at, Mapping) else self.at)

    @property
    def at_teacher(self) -> tuple[str, ...]:
        """Names of the teacher's maps, in the order of the student's."""
        return _names(self.at["teacher"] if isinstance(self.at, Mapping) else self.at)

    @property
    def lists_maps(self) -> bool:
        """Whether the loss gets mappings of maps by name instead of one map."""
        at = self.at["student"] if isinstance(self.at, Mapping) else self.at
        return isinstance(at, list | tuple)

    @property
    def reads_features(self) -> bool:
        """Whether the term compares other maps than the logits."""
        return any(name != LOGITS for name in (*self.at_student, *self.at_teacher))

    @property
    def needs_teacher(self) -> bool:
        return self.contract.needs_teacher and self.weight > 0

    @property
    def needs(self) -> str:
        """Part of the teacher that the loss reads; an option may need more than its contract."""
        return str(getattr(self.loss, "needs_of_teacher", self.contract.needs))

    @property
    def needs_class_pixels(self) -> bool:
        """Whether the loss needs the labelled pixels of each class in the training data."""
        return bool(getattr(self.loss, "needs_class_pixels", False))

    def build_loss(
        self,
        where: str,
        student_channels: int,
        teacher_channels: int,
        num_classes: int,
        class_pixels: Sequence[int] | None = None,
    ) -> nn.Module:
        """The loss of this term for maps of these widths and data of these classes."""
        if self.needs_class_pixels:
            if class_pixels is None:
                raise UserError(
                    f"{where}: class_weights is {self.options.get('class_weights')!r}, which needs "
                    "the labelled pixels of each class in the training data"
                )
            return _construct(
                where, self.contract, {**self.options, CLASS_PIXELS: list(class_pixels)}
            )
        if self.loss is not None:
            return deepcopy(self.loss)  # a recipe may serve several networks
        widths = dict(zip(CHANNELS, (student_channels, teacher_channels, num_classes), strict=True))
        widths = {key: widths[key] for key in self.contract.channels}
        return _construct(where, self.contract, {**self.options, **widths})

    def to_dict(self, name: str) -> dict[str, Any]:
        """Every key of the term, with the defaults of its loss."""
        kept = {"loss": self.contract.name} if self.contract.name != name else {}
        adapter = {"adapter": self.adapter} if self.adapter != IDENTITY else {}
        return {
            **kept,
            "weight": self.weight,
            "schedule": self.schedule,
            "at": self.at,
            "resolution": self.resolution,
            **adapter,
            **{
                # a loss may resolve a default that depends on another option
                key: getattr(self.loss, key, self.options.get(key, default))
                for key, (_, default) in self.contract.options.items()
            },
        }


@dataclass(frozen=True)
class Recipe:
    """A method: its terms by name."""

    name: str
    terms: dict[str, TermRecipe]

    @property
    def active(self) -> dict[str, TermRecipe]:
        """The terms that are computed: those with a weight above 0."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms.values())

    @property
    def needs_class_pixels(self) -> bool:
        """Whether a term needs the labelled pixels of each class in the training data."""
        return any(term.needs_class_pixels for term in self.active.values())

    @property
    def losses(self) -> dict[str, nn.Module]:
        """The losses by term, without those that depend on the channels of the maps."""
        return {name: term.loss for name, term in self.terms.items() if term.loss is not None}

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of every term at ``progress`` in [0, 1]."""
        return {
            name: term.weight * SCHEDULES[term.schedule](progress)
            for name, term in self.terms.items()
        }

    @property
    def option_defaults(self) -> dict[str, dict[str, Any]]:
        """Defaults of the options of every loss, by term: what an older config may lack."""
        return {
            name: {key: default for key, (_, default) in term.contract.options.items()}
            for name, term in self.terms.items()
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every key of every term: the complete recipe."""
        return {name: term.to_dict(name) for name, term in self.terms.items()}

    def require(self, serves: Literal["probabilities", "logits"], who: str, cure: str) -> None:
        """Refuse a recipe that reads more of a teacher than ``who`` gives.

        Args:
            serves: logits, or no more than the class probabilities of every pixel.
            who: substitute for the teacher, for the message: "teacher_cache holds logits", or
                "the 4 largest of a pixel".
            cure: advice at the end of the message.

        Raises:
            UserError: names the term and what it needs.
        """
        for name, term in self.terms.items():
            if not term.needs_teacher:
                continue
            features = [at for at in term.at_teacher if at != LOGITS]
            if features:
                raise UserError(
                    f"{who}, and term {name!r} compares the feature {features[0]!r}: {cure}"
                )
            if serves == "probabilities" and term.needs != "probabilities":
                raise UserError(f"term {name!r} needs every logit, not {who}: {cure}")

    def with_numerics(self, numerics: str) -> Recipe:
        """Copy of the recipe with ``numerics`` for every term whose loss has them.

        With ``released``, terms on logits move to the input's resolution, as in the released code.
        An option whose default follows the numerics (a reduction, a patch) takes its default;
        weights stay, although their meaning changes.

        Raises:
            UserError: unknown numerics, or a term with an option that they do not have.
        """
        return replace(
            self,
            terms={name: _change_numerics(name, t, numerics) for name, t in self.terms.items()},
        )

    @property
    def without_numerics(self) -> list[str]:
        """Terms that have one form only: a released protocol leaves them as they are."""
        return [name for name, t in self.terms.items() if "numerics" not in t.contract.options]


def load_recipe(
    method: str,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    losses: Losses | None = None,
) -> Recipe:
    """The recipe of a method.

    Args:
        method: one of :func:`list_methods`, or the path of a YAML file of the same form.
        overrides: changes by term and key, such as ``{"icsd": {"weight": 50}}``; a term that the
            recipe does not have is added.
        losses: further losses by name, for the key ``loss`` of a term.

    Raises:
        UserError: unknown method, term, key or value.
    """
    path = RECIPE_FOLDER / f"{method}.yaml"
    if not path.is_file():
        path = Path(method)
        if path.suffix not in (".yaml", ".yml"):
            raise UserError(f"unknown method {method!r}{suggest(method, list_methods())}")
    content = read_yaml(path, "recipe")
    if not isinstance(content, dict) or not isinstance(content.get("terms"), dict):
        raise UserError(f"recipe {path} must have the key 'terms' with a mapping of terms")
    for key in content:
        if key != "terms":
            raise UserError(f"recipe {path}: unknown key {key!r}{suggest(key, ['terms'])}")
    for name, values in content["terms"].items():
        if not isinstance(values, dict | None):
            raise UserError(f"recipe {path}: term {name!r} is {values!r}; it must be a mapping")
    return make_recipe(Path(method).stem, content["terms"], overrides, losses, source=str(path))


def make_recipe(
    name: str,
    terms: Mapping[str, Mapping[str, Any] | None],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    losses: Losses | None = None,
    source: str | None = None,
) -> Recipe:
    """A recipe from terms in memory; the arguments are those of :func:`load_recipe`.

    ``source`` stands for its name in messages.

    Raises:
        UserError: unknown term, key or value, or no term at all.
    """
    merged = {term: dict(values or {}) for term, values in terms.items()}
    for term, values in (overrides or {}).items():
        merged.setdefault(term, {}).update(values)
    parsed = {term: _parse_term(term, values, losses) for term, values in merged.items()}
    if not any(term.weight > 0 for term in parsed.values()):
        raise UserError(f"recipe {source or name} has no terms: there is nothing to train on")
    return Recipe(name, parsed)


def _parse_term(name: str, values: Mapping[str, Any], losses: Losses | None) -> TermRecipe:
    where = f"term {name!r}"
    known = known_losses(losses)
    if "loss" not in values and name not in known:
        raise UserError(f"unknown term {name!r}{suggest(name, known)}")
    try:
        contract = contract_of(values.get("loss", name), losses)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not str(name).isidentifier() or name == "loss" or hasattr(nn.ModuleDict, name):
        raise UserError(f"{where}: this name is taken; a name is letters, digits and underscores")
    common = {k: v for k, v in values.items() if k in COMMON_KEYS and k != "loss"}
    options = {k: v for k, v in values.items() if k not in COMMON_KEYS}
    allowed = [*COMMON_KEYS, *contract.options]
    for key in options:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}{suggest(key, allowed)}")
    term = TermRecipe(contract, **{"resolution": contract.resolution, **common}, options=options)
    _check_common(where, term)
    _check_maps(where, term)
    contract.check_options(where, options)
    return _with_loss(where, term)


def _with_loss(where: str, term: TermRecipe) -> TermRecipe:
    if term.contract.channels:
        return term
    return replace(term, loss=_construct(where, term.contract, term.options))


def _construct(where: str, contract: LossContract, options: Mapping[str, Any]) -> nn.Module:
    """The loss, which refuses its own bad values."""
    try:
        return contract.loss(**options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_common(where: str, term: TermRecipe) -> None:
    is_number = isinstance(term.weight, int | float) and not isinstance(term.weight, bool)
    if not is_number or not 0 <= term.weight < float("inf"):
        raise UserError(f"{where}: weight is {term.weight!r}; it is a number of 0 or above")
    if term.schedule not in list(SCHEDULES):
        raise UserError(
            f"{where}: unknown schedule {term.schedule!r}{suggest(str(term.schedule), SCHEDULES)}"
        )
    if term.adapter not in list(ADAPTERS):
        raise UserError(
            f"{where}: unknown adapter {term.adapter!r}{suggest(str(term.adapter), ADAPTERS)}"
        )
    if term.adapter != IDENTITY and not term.contract.needs_teacher:
        raise UserError(f"{where}: adapter is {term.adapter!r}, but the term has no teacher's map")


def _check_maps(where: str, term: TermRecipe) -> None:
    sides = term.at if isinstance(term.at, Mapping) else {"student": term.at, "teacher": term.at}
    if set(sides) != {"student", "teacher"} or not all(map(_is_named, sides.values())):
        raise UserError(
            f"{where}: at is {term.at!r}; it is logits or the name of a feature, a list of them, "
            "or a mapping with student and teacher"
        )
    if len(term.at_student) != len(term.at_teacher):
        raise UserError(
            f"{where}: at has {len(term.at_student)} maps of the student and "
            f"{len(term.at_teacher)} of the teacher; they are compared one by one"
        )
    if len(set(term.at_student)) < len(term.at_student):
        raise UserError(f"{where}: at is {term.at!r}; it names a map of the student twice")
    if term.resolution not in get_args(Resolution):
        raise UserError(
            f"{where}: resolution is {term.resolution!r}; allowed are "
            f"{', '.join(get_args(Resolution))}"
        )
    if term.reads_features and term.contract.needs == "labels":
        raise UserError(f"{where}: at is {term.at!r}; a term on labels reads the logits only")
    if term.reads_features and term.resolution == "input":
        raise UserError(
            f"{where}: resolution is 'input' on the feature {term.at!r}; features are compared "
            "where they are: set resolution to native"
        )


def _is_named(at: object) -> bool:
    return isinstance(at, str) or (
        isinstance(at, list | tuple) and len(at) > 0 and all(isinstance(name, str) for name in at)
    )


def _names(at: str | list[str]) -> tuple[str, ...]:
    return (at,) if isinstance(at, str) else tuple(at)


def _change_numerics(name: str, term: TermRecipe, numerics: str) -> TermRecipe:
    if "numerics" not in term.contract.options:
        return term
    follows = term.contract.follows_numerics
    kept = {key: value for key, value in term.options.items() if key not in follows}
    at_input = numerics == "released" and not term.reads_features
    return _with_loss(
        f"term {name!r}",
        replace(
            term,
            options={**kept, "numerics": numerics},
            resolution="input" if at_input else term.resolution,
        ),
    )
