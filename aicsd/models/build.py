"""Build a new network from a config."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, suggest
from aicsd.models.load import is_reference, load_model
from aicsd.models.model_file import is_model_file
from aicsd.models.segmenter import Segmenter
from aicsd.models.settings import ModelConfig
from aicsd.models.sources import LIBRARIES, SOURCES, find_source
from aicsd.models.sources.base import nameless_classes
from aicsd.types import LOGITS, OWN_MODULE


def wrap_module(net: nn.Module, classes: Classes) -> Segmenter:
    """A module of the user as a student of ``classes``.

    Args:
        net: a segmenter of these classes, a network of one of ``LIBRARIES``, or a module that
            takes images normalised by the ImageNet mean and std and returns logits (B, C, h, w), a
            dict with ``out`` or an object with ``logits``.
        classes: classes of the data.

    Raises:
        UserError: a segmenter of other classes, or another number of logits.
    """
    model = net if isinstance(net, Segmenter) else _adopt(net, classes) or Segmenter(net, classes)
    if model.classes.names != classes.names:
        raise UserError(
            f"the student predicts the classes {list(model.classes.names)}, and the data has "
            f"{list(classes.names)}: give a student with these classes in this order"
        )
    count = model.maps[LOGITS].channels
    if count != len(classes.names):
        raise UserError(
            f"the student has {count} logits per pixel, and the data {len(classes.names)} classes: "
            "give a student with one for each class"
        )
    return model


def _adopt(net: nn.Module, classes: Classes | None = None) -> Segmenter | None:
    """A module that a library has built, with all that is known of it."""
    adopted = (library.adopt(net, classes) for library in LIBRARIES)
    return next((model for model in adopted if model is not None), None)


def without_names(net: nn.Module) -> Segmenter:
    """A module of the user with as many nameless classes as it has logits.

    Args:
        net: as of :func:`wrap_module`; one of a library may name its classes.
    """
    adopted = _adopt(net)
    if adopted is not None:
        return adopted
    maps = Segmenter(net, nameless_classes(1)).maps
    return Segmenter(net, nameless_classes(maps[LOGITS].channels), maps=maps)


def build_model(config: ModelConfig, classes: Classes) -> Segmenter:
    """A new network for ``classes``.

    Raises:
        UserError: an unknown family, an option that it does not have, or weights that do not fit.
    """
    family, options = config.of_family()
    if family == OWN_MODULE:
        raise UserError(
            "the network of this config is a module of your own: give it from Python, as student "
            "of aicsd.distill or model of aicsd.train"
        )
    source = find_source(family)
    if source is None:
        known = [source.PREFIX for source in SOURCES if source.names()]
        raise UserError(f"unknown family {family!r}{suggest(family, known)}")
    start = config.weights
    trained = is_reference(start) or Path(start).is_dir()
    if trained or (Path(start).is_file() and is_model_file(Path(start))):
        del options["weights"]
        model = source.build(options, classes)
        _start_from(model, start)
        return model
    return source.build(options, classes)


def _start_from(model: Segmenter, reference: str) -> None:
    """Load a trained network; a classifier for other classes keeps its initial weights."""
    trained = load_model(reference)
    state, own = trained.net.state_dict(), model.net.state_dict()
    before, now = len(trained.classes.names), len(model.classes.names)
    if before != now:
        for key, value in own.items():
            held = state.get(key)
            if held is not None and (*value.shape[:1], *held.shape[:1]) == (now, before):
                state[key] = value if held.shape[1:] == value.shape[1:] else held
    different = [key for key in own if key not in state or own[key].shape != state[key].shape]
    if different or len(own) != len(state):
        raise UserError(
            f"weights: the model at {reference} has another architecture than the one to train "
            f"(first difference: {(different or sorted(set(state) - set(own)))[0]})"
        )
    model.net.load_state_dict(state)
