"""A teacher's classes as those of the data: renamed, merged or left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, suggest
from aicsd.models import Segmenter, as_output
from aicsd.types import SegOutput
from aicsd.yaml_file import read_yaml

SHIPPED = Path(__file__).parent / "maps"
"""Maps that come with the package."""
ClassMap = Mapping[str | int, str | int | None]
"""Name or number of a teacher's class -> name or number of a class of the data, or None."""


class Groups(NamedTuple):
    """The teacher's classes behind each class of the data."""

    members: tuple[tuple[int, ...], ...]
    """Numbers of the teacher's classes, one tuple for each class of the data."""
    ignored: tuple[str, ...]
    """Classes of the teacher that map to none of the data."""


def shipped_maps() -> list[str]:
    """Names of the maps that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_map(name: str | Path) -> Path:
    """The path of a map file; ``cityscapes_camvid`` is one that comes with the package.

    Raises:
        UserError: neither.
    """
    path = Path(name)
    if path.exists():
        return path
    if str(name) not in shipped_maps():
        raise UserError(
            f"teacher_classes: no file {name}{suggest(str(name), shipped_maps())}; "
            "give a YAML file with lines such as 'car: Car'"
        )
    return SHIPPED / f"{name}.yaml"


def read_class_map(name: str | Path) -> ClassMap:
    """The map in a YAML file, which holds ``class of the teacher: class of the data`` lines.

    Numbers stand for classes by their order; ``null`` leaves a class of the teacher out.

    Raises:
        UserError: no such file, or something else in it.
    """
    path = find_map(name)
    found = read_yaml(path, "teacher_classes")
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"teacher_classes {path} must hold lines such as 'car: Car'")
    for key, value in found.items():
        for part in (key, value):
            if isinstance(part, bool) or not isinstance(part, str | int | None):
                raise UserError(
                    f"teacher_classes {path}: {part!r} is neither a name nor a number; put a name "
                    "that YAML reads in another way in quotes"
                )
    return dict(found)


def is_nameless(classes: Classes) -> bool:
    """Whether a network does not name its classes: they are called ``class_0``, ``class_1``, ..."""
    return all(re.fullmatch(rf"class_{n}", name) for n, name in enumerate(classes.names))


def group_classes(teacher: Classes, data: Classes, mapping: ClassMap | None = None) -> Groups:
    """The teacher's classes for each class of the data.

    A class that ``mapping`` does not have maps to that of its name. A teacher that does not name
    its classes is taken to have those of the data if it has as many.

    Raises:
        UserError: a class of the data that the teacher has nothing for, or a map that names
            classes which are not there.
    """
    if mapping is None and is_nameless(teacher) and teacher.names != data.names:
        if len(teacher.names) == len(data.names):
            return Groups(tuple((number,) for number in range(len(data.names))), ())
        raise UserError(
            f"the teacher has {len(teacher.names)} classes without names, and the data has "
            f"{len(data.names)}: give --teacher_classes MAP.yaml, which turns its numbers into "
            f"names of the data in lines such as '0: {data.names[0]}'"
        )
    target = _targets(teacher, data, mapping or {})
    members = tuple(
        tuple(number for number, name in enumerate(teacher.names) if target.get(name) == wanted)
        for wanted in range(len(data.names))
    )
    unknown = [name for name, held in zip(data.names, members, strict=True) if not held]
    if unknown:
        raise UserError(
            f"the teacher has no classes {unknown}; its classes are {list(teacher.names)}: "
            "train it on the same classes, or map its classes with --teacher_classes MAP.yaml"
        )
    return Groups(members, tuple(name for name in teacher.names if target.get(name) is None))


def _targets(teacher: Classes, data: Classes, mapping: ClassMap) -> dict[str, int | None]:
    """Name of each class of the teacher -> number of its class of the data."""
    found: dict[str, int | None] = {
        name: data.names.index(name) for name in teacher.names if name in data.names
    }
    for key, value in mapping.items():
        source = _name(key, teacher, "teacher")
        found[source] = None if value is None else data.names.index(_name(value, data, "data"))
    return found


def _name(part: str | int | None, classes: Classes, owner: str) -> str:
    """A class by its name or number."""
    if isinstance(part, int) and str(part) not in classes.names:
        if not 0 <= part < len(classes.names):
            raise UserError(
                f"teacher_classes: the {owner} has no class {part}; its {len(classes.names)} "
                "classes are counted from 0"
            )
        return classes.names[part]
    if str(part) not in classes.names:
        raise UserError(
            f"teacher_classes: the {owner} has no class {str(part)!r}{suggest(part, classes.names)}"
        )
    return str(part)


def with_classes(
    model: Segmenter, classes: Classes, class_map: str | Path | ClassMap | None = None
) -> tuple[Segmenter, tuple[str, ...]]:
    """``model`` with logits for ``classes``, and the classes that it loses.

    Args:
        model: a trained network.
        classes: classes of the data.
        class_map: as of :class:`aicsd.teacher.Teacher`.

    Raises:
        UserError: a class that the network lacks, or a map that does not fit.
    """
    mapping = read_class_map(class_map) if isinstance(class_map, str | Path) else class_map
    groups = group_classes(model.classes, classes, mapping)
    order = [members[0] for members in groups.members]
    net: nn.Module
    if any(len(members) > 1 for members in groups.members):
        net = GroupedClasses(model.net, groups.members)
    else:
        net = _SelectClasses(model.net, order)
    return model.with_net(net, classes), groups.ignored


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


class GroupedClasses(nn.Module):
    """A network with logits for groups of its classes.

    The logit of a group is the log of the sum of its members' exponentials, so that its probability
    is the sum of theirs.

    Args:
        net: returns logits (B, C, h, w).
        members: numbers of the classes of each group.
    """

    groups: Tensor

    def __init__(self, net: nn.Module, members: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.net, self.members = net, members
        width = max(map(len, members))
        # a buffer, so that whatever compares the weights of two networks compares the groups too
        table = torch.full((len(members), width), -1)
        for group, numbers in enumerate(members):
            table[group, : len(numbers)] = torch.tensor(numbers)
        self.register_buffer("groups", table)

    def forward(self, image: Tensor) -> SegOutput:
        output = as_output(self.net(image))
        logits = output.logits
        merged = [
            logits[:, numbers[0]]
            if len(numbers) == 1
            else logits[:, list(numbers)].logsumexp(dim=1)
            for numbers in self.members
        ]
        return output._replace(logits=torch.stack(merged, dim=1))
