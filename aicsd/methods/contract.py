"""Contract of a loss: inputs of its forward pass, demands on the teacher, options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from aicsd.errors import UserError, suggest
from aicsd.losses import list_losses, loss_class

INPUTS = ("student", "teacher", "mask", "valid", "image", "progress")
"""Inputs that ``forward`` of a loss may have, by the names of its parameters."""

CHANNELS = ("student_channels", "teacher_channels", "num_classes")
"""Arguments of a constructor that come from the maps of the networks, not from a recipe: channels
of the maps as ``forward`` gets them, behind an adapter where there is one; logits of the student.
"""

CLASS_PIXELS = "class_pixels"
"""Argument of a constructor that comes from the training data: labelled pixels of each class. It
has a default; the data is counted only if the loss has ``needs_class_pixels``."""

Needs = Literal["labels", "probabilities", "logits", "features"]
Losses = Mapping[str, type[nn.Module]]


@dataclass(frozen=True)
class LossContract:
    """The facts of one loss class.

    Args:
        name: name of the loss in recipes.
        loss: the class.
        inputs: parameters of its ``forward``, each one of :data:`INPUTS`.
        needs: part of the teacher that it reads: nothing (``labels``), class probabilities of every
            pixel (``probabilities``), the logits themselves, or maps of any kind (``features``).
        same_channels: whether both maps must have one number of channels.
        resolution: ``native`` or ``input``: where a term compares if its recipe does not set it.
        options: type and default of every option.
        channels: those of :data:`CHANNELS` that its constructor takes.
        follows_numerics: options whose default depends on ``numerics``; a protocol that changes
            these leaves such options to the loss.
    """

    name: str
    loss: type[nn.Module]
    inputs: tuple[str, ...]
    needs: Needs
    same_channels: bool
    resolution: str
    options: dict[str, tuple[Any, Any]]
    channels: tuple[str, ...]
    follows_numerics: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        return "teacher" in self.inputs

    def check_options(self, where: str, options: Mapping[str, Any]) -> None:
        """Refuse values of a wrong type.

        Raises:
            UserError: names the option and what it must be.
        """
        for key, value in options.items():
            hint, default = self.options[key]
            if fits(value, hint):
                continue
            allowed = choices(hint)
            if allowed:
                raise UserError(f"{where}: {key} is {value!r}; allowed are {', '.join(allowed)}")
            kind = type(default).__name__ if isinstance(default, int | float | str) else words(hint)
            raise UserError(f"{where}: {key} is {value!r}; it is a {kind}")


def known_losses(losses: Losses | None = None) -> list[str]:
    """Names that :func:`contract_of` takes: of the package, and those of ``losses``."""
    return [*list_losses(), *(losses or {})]


def contract_of(name: str, losses: Losses | None = None) -> LossContract:
    """The contract of the loss ``name``.

    Args:
        name: name of a loss of the package, or a key of ``losses``.
        losses: further losses by name.

    Raises:
        UserError: an unknown loss, a ``forward`` with an unknown parameter, a constructor that
            cannot be called with options alone.
    """
    losses = losses or {}
    known = known_losses(losses)
    if name not in known:  # a list and no mapping, for a YAML file may give a list as name
        raise UserError(f"unknown loss {name!r}{suggest(name, known)}")
    loss = losses[name] if name in losses else loss_class(name)
    if not (isinstance(loss, type) and issubclass(loss, nn.Module)):
        raise UserError(f"loss {name!r} is {loss!r}; it must be a class derived from nn.Module")
    inputs = tuple(inspect.signature(loss.forward).parameters)[1:]
    for key in inputs:
        if key not in INPUTS:
            raise UserError(f"loss {name!r}: forward asks for {key!r}{suggest(key, INPUTS)}")
    parameters = inspect.signature(loss).parameters
    for key, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or (parameter.default is parameter.empty and key not in CHANNELS):
            raise UserError(f"loss {name!r}: the option {key!r} of its constructor has no default")
    hints = _hints(loss)
    return LossContract(
        name=name,
        loss=loss,
        inputs=inputs,
        needs=getattr(loss, "needs", "features" if "teacher" in inputs else "labels"),
        same_channels=getattr(loss, "same_channels", True),
        resolution=getattr(loss, "resolution", "native" if "teacher" in inputs else "input"),
        options={
            key: (hints.get(key, Any), parameter.default)
            for key, parameter in parameters.items()
            if key not in (*CHANNELS, CLASS_PIXELS)
        },
        channels=tuple(key for key in CHANNELS if key in parameters),
        follows_numerics=tuple(getattr(loss, "follows_numerics", ())),
    )


def _hints(loss: type[nn.Module]) -> dict[str, Any]:
    try:
        # fields of a dataclass may come from a class of another module, with its names
        return get_type_hints(loss if is_dataclass(loss) else loss.__init__)
    except NameError:  # annotations that only exist where the class was defined
        return {}


def fits(value: object, hint: Any) -> bool:
    """Whether a value of a YAML file has the type ``hint``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is not None and isinstance(value, list | tuple):
        return not arguments or all(fits(item, arguments[0]) for item in value)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def choices(hint: Any) -> list[str]:
    """The values of a type that lists them."""
    if get_origin(hint) in (Union, UnionType):
        return [value for each in get_args(hint) for value in choices(each)]
    return [str(value) for value in get_args(hint)] if get_origin(hint) is Literal else []


def words(hint: Any) -> str:
    """A type for an error message."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(words(each) for each in get_args(hint))
    return "null" if hint in (None, NoneType) else str(getattr(hint, "__name__", hint))
