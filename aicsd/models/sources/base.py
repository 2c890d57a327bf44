"""Sources: families of networks, how to build a new network and how to load a trained one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints, runtime_checkable

from torch import nn

from aicsd import extras
from aicsd.data.classes_file import distinct_color
from aicsd.data.open import DATASETS
from aicsd.data.protocol import Classes
from aicsd.errors import UserError, check_options
from aicsd.models.segmenter import Segmenter

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Source(Protocol):
    """A module of :mod:`aicsd.models.sources`, one for each family."""

    PREFIX: str
    """Name of the family, and what stands before the colon of its references."""
    SUFFIXES: tuple[str, ...]
    """Endings of the files that it loads."""
    SHARED: frozenset[str]
    """Keys of :class:`aicsd.models.ModelConfig` whose values mean the same in a DeepLabV3+."""

    def names(self) -> list[str]:
        """Networks of the family that can be built or loaded by name."""

    def build(self, options: Mapping[str, Any], classes: Classes) -> Segmenter:
        """A new network.

        Raises:
            UserError: an option that the family does not have, or a value that it does not take.
        """

    def load(self, reference: str) -> Segmenter:
        """A trained network, from a path or from what follows the colon.

        Raises:
            UserError: nothing there, or something else.
        """


@runtime_checkable
class Library(Source, Protocol):
    """A source whose library builds modules and writes folders, which are taken as they are."""

    def adopt(self, module: nn.Module, classes: Classes | None = None) -> Segmenter | None:
        """A network that was built with the library, or None if ``module`` is none.

        Args:
            module: is trained in place.
            classes: predicted classes; default: those that the network names.

        Raises:
            UserError: a network that cannot be used.
        """

    def wrote(self, config: Mapping[str, Any]) -> bool:
        """Whether the ``config.json`` of a folder is one of the library."""

    def load_folder(self, folder: Path) -> Segmenter:
        """The network in a folder that ``save_pretrained`` of the library wrote.

        Raises:
            UserError: another network, or files that are missing or damaged.
        """


def parse_options(family: str, kind: type[T], options: Mapping[str, Any]) -> T:
    """Options of a family as its dataclass.

    Raises:
        UserError: an unknown option with the nearest right one, a value of another type, or what
            the dataclass refuses.
    """
    where = f"family {family}"
    check_options(where, kind, dict(options))
    types = get_type_hints(kind)
    for key, value in options.items():
        wanted = types[key]
        is_number = wanted is float and type(value) is int
        if type(value) is not wanted and not is_number:
            raise UserError(f"{where}: {key} is {value!r}; it must be {WORDS[wanted]}")
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in options:
            raise UserError(f"{where} needs the option {field.name}")
    return kind(**options)


def only_built(family: str) -> UserError:
    """The error for a reference to a family without trained networks."""
    return UserError(
        f"{family} has no trained networks by name; give the run folder or the file of one"
    )


def only_loaded(source: str) -> UserError:
    """The error for a family whose networks are files."""
    return UserError(f"networks of {source} are loaded, and not built")


def named_classes(names: list[str]) -> Classes:
    """Classes with the colours of the public dataset that has them, or colours that differ."""
    found = [entry.classes for entry in DATASETS.values() if entry.classes is not None]
    known = [classes for classes in found if classes.names == tuple(names)]
    colors = tuple(distinct_color(number) for number in range(len(names)))
    return known[0] if known else Classes(tuple(names), colors)


def nameless_classes(count: int) -> Classes:
    """``class_0``, ``class_1``, ... for a network that does not name its classes."""
    return named_classes([f"class_{number}" for number in range(count)])


def require(module: str, family: str) -> Any:
    """Import the library of a family.

    Raises:
        UserError: it is not installed.
    """
    need = f"networks of {family} need {module.split('.')[0]}"
    return extras.require(module, "teachers", need)
