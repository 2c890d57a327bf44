"""Description of a foreign model file, in a YAML file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aicsd.data.classes_file import distinct_color, read_classes
from aicsd.data.protocol import Classes
from aicsd.errors import UserError, one_line, suggest
from aicsd.models.input_spec import IMAGENET, InputSpec
from aicsd.yaml_file import read_yaml

KEYS = ("classes", "mean", "std", "scale", "bgr", "align_corners", "window")


class Beside(NamedTuple):
    """Classes and input of a file."""

    classes: Classes
    input: InputSpec | None
    """None if the description has no input spec."""
    align_corners: bool


def beside(path: Path) -> Path:
    """Path of the description of a model file: ``theirs.onnx`` -> ``theirs.onnx.yaml``."""
    return path.with_name(f"{path.name}.yaml")


def read_beside(path: Path) -> Beside:
    """The description beside the file ``path``.

    Keys: ``classes``, a list of names or the path of a ``classes.txt`` from the folder of the
    description on; ``mean``, ``std``, ``scale``, ``bgr``, ``window`` (see
    :class:`aicsd.models.segmenter.InputSpec`); ``align_corners``.

    Raises:
        UserError: no such file, an unknown key, or a value of the wrong kind.
    """
    place = beside(path)
    found = read_yaml(place, "description")
    if not isinstance(found, Mapping) or "classes" not in found:
        raise UserError(f"description {place} must have the key classes: a list of names")
    for key in found:
        if key not in KEYS:
            raise UserError(f"description {place}: unknown key {key!r}{suggest(key, KEYS)}")
    try:
        spec = InputSpec(
            _three(found.get("mean", IMAGENET.mean)),
            _three(found.get("std", IMAGENET.std)),
            float(found.get("scale", IMAGENET.scale)),
            bgr=_flag(found.get("bgr", False)),
            window=int(found.get("window", 0)),
        )
        if min(spec.std) <= 0 or spec.scale <= 0 or spec.window < 0:
            raise ValueError("std and scale must be above 0, window 0 or more")
        aligned = _flag(found.get("align_corners", False))
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"description {place}: {reason}") from error
    says = any(key in found for key in ("mean", "std", "scale", "bgr", "window"))
    return Beside(_classes(place, found["classes"]), spec if says else None, aligned)


def _classes(place: Path, given: Any) -> Classes:
    if isinstance(given, str):
        return read_classes(place.parent / given)
    if not isinstance(given, list) or not given or not all(isinstance(n, str) for n in given):
        raise UserError(f"description {place}: classes is a list of names, or a file of them")
    if len(set(given)) < len(given) or len(given) > 255:
        raise UserError(f"description {place}: classes names one twice, or more than 255")
    return Classes(tuple(given), tuple(map(distinct_color, range(len(given)))))


def _three(value: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, value)
    return red, green, blue


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
