"""Networks of transformers: per-pixel classifiers, mask classifiers, SegFormer as a student."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError, one_line, suggest
from aicsd.models.input_spec import IMAGENET, InputSpec
from aicsd.models.one_size import Resizing
from aicsd.models.segmenter import Origin, Segmenter
from aicsd.models.sources.base import named_classes, nameless_classes, parse_options, require
from aicsd.models.sources.folder import (
    find_folder,
    folder_classes,
    read_config,
    read_object,
    require_weights,
)
from aicsd.models.transformers_net import KINDS, Kind, TransformersNet

PREFIX = "transformers"
SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset()
PROCESSOR = "preprocessor_config.json"
TASK = "the task is semantic"
"""Task prompt for a network of several tasks, in the words of its training."""
CLIP_WORDS = 49408
"""Size of the vocabulary of CLIP."""
CLIP_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""Tokens of :data:`TASK` in that vocabulary."""
CONFIG_OPTION = "config"
"""Option of a loaded network: its whole configuration."""
STUDENTS: dict[str, dict[str, Any]] = {
    "segformer-b0": {
        "hidden_sizes": [32, 64, 160, 256],
        "depths": [2, 2, 2, 2],
        "decoder_hidden_size": 256,
    },
    "segformer-b1": {
        "hidden_sizes": [64, 128, 320, 512],
        "depths": [2, 2, 2, 2],
        "decoder_hidden_size": 256,
    },
    "segformer-b2": {
        "hidden_sizes": [64, 128, 320, 512],
        "depths": [3, 4, 6, 3],
        "decoder_hidden_size": 768,
    },
}
"""Networks that can be built by name -> their configuration (table 6 of arXiv 2105.15203)."""


@dataclass(frozen=True)
class Options:
    """A network of transformers."""

    name: str
    """segformer-b0 and others; of a loaded network, its kind"""
    weights: str = "none"
    """none (random); hf:user/name or a folder starts from a trained network of the same size"""

    def __post_init__(self) -> None:
        if self.weights != "none":
            raise UserError(
                f"weights is {self.weights!r}; transformers has none, and a folder or hf:user/name "
                "of a trained network"
            )


def names() -> list[str]:
    """Networks that can be built by name."""
    return list(STUDENTS)


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    config = options.get(CONFIG_OPTION)
    given = {key: value for key, value in options.items() if key != CONFIG_OPTION}
    parsed = parse_options(PREFIX, Options, given)
    if config is None:
        if parsed.name not in STUDENTS:
            raise UserError(
                f"transformers has no network {parsed.name!r} to build"
                f"{suggest(parsed.name, STUDENTS)}"
            )
        kind_name = parsed.name.partition("-")[0]
        return _assemble(kind_name, STUDENTS[parsed.name], parsed.name, None, classes, IMAGENET)
    if not isinstance(config, Mapping):
        raise UserError(f"family {PREFIX}: config is {config!r}; it must be a mapping")
    return _assemble(parsed.name, config, parsed.name, config, classes, IMAGENET)


def load(reference: str) -> Segmenter:
    """A network that ``save_pretrained`` of the library wrote: a folder or a name on the hub."""
    if reference in STUDENTS:
        raise UserError(
            f"{PREFIX}:{reference} names a network without weights; give the folder or the hub "
            f"name of a trained one, or train one: aicsd train --model.family {PREFIX}:{reference}"
        )
    return load_folder(find_folder(reference))


def wrote(config: Mapping[str, Any]) -> bool:
    """Whether the ``config.json`` of a folder is one of the library."""
    return "model_type" in config


def load_folder(folder: Path) -> Segmenter:
    """The network in a folder with ``config.json`` and safetensors weights.

    ``preprocessor_config.json`` holds its input spec. ``classes.txt`` in the folder names
    the classes in place of the configuration.
    """
    held = read_config(folder)
    kind_name = str(held.get("model_type"))
    if kind_name not in KINDS:
        raise UserError(
            f"{folder} holds a network of the kind {kind_name!r}, which is none of "
            f"{', '.join(KINDS)}"
        )
    kind = KINDS[kind_name]
    written = (held.get("architectures") or [kind.model])[0]
    if written != kind.model:
        raise UserError(f"{folder} holds a {written}; only a {kind.model} segments images")
    require_weights(folder)
    library = _library()
    config = _config(library, kind, held, None)
    labels = _labels(config)
    classes = folder_classes(folder, len(labels), None if _are_numbers(labels) else labels)
    try:
        net, report = getattr(library, kind.model).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # whatever the library meets in files of anybody
        reason = one_line(error, 300)
        raise UserError(f"{folder} does not hold the network of its config: {reason}") from error
    lacking = [*report.get("missing_keys", ()), *(k[0] for k in report.get("mismatched_keys", ()))]
    if lacking:
        raise UserError(
            f"{folder} does not hold the network of its config: {len(lacking)} weights missing or "
            f"of another shape, such as {sorted(lacking)[0]}"
        )
    spec = _input(library, kind, config, folder)
    model = _segmenter(kind, net, kind_name, net.config.to_dict(), classes, spec)
    if kind.needs_task:
        _tell_task(model, _task_of_folder(library, folder, config))
    return model.eval()


def adopt(module: nn.Module, classes: Classes | None = None) -> Segmenter | None:
    """A network that was built with the library, or None if ``module`` is none.

    Its input is that of the image processor of its kind.

    Args:
        module: is trained in place.
        classes: predicted classes; default: those of its configuration.
    """
    library = sys.modules.get("transformers")
    config = getattr(module, "config", None)
    kind = KINDS.get(str(getattr(config, "model_type", "")))
    if library is None or config is None or kind is None or type(module).__name__ != kind.model:
        return None
    if classes is None:
        labels = _labels(config)
        unnamed = _are_numbers(labels)
        classes = nameless_classes(len(labels)) if unnamed else named_classes(labels)
    spec = _input(library, kind, config, None)
    model = _segmenter(kind, module, config.model_type, config.to_dict(), classes, spec)
    if kind.needs_task:
        _tell_task(model, _clip_task(config, f"a module {kind.model}"))
    return model


def _labels(config: Any) -> list[str]:
    return [str(config.id2label[number]) for number in range(len(config.id2label))]


def _library() -> Any:
    """The library without its log messages and, without a terminal, its progress bars."""
    library = require("transformers", PREFIX)
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        library.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        library.logging.disable_progress_bar()
    return library


def _tell_task(model: Segmenter, tokens: Sequence[int]) -> None:
    held = model.net.get_buffer("task")
    held[0, : len(tokens)] = torch.tensor(tokens[: held.shape[1]])


def _task_of_folder(library: Any, folder: Path, config: Any) -> Sequence[int]:
    """Tokens of the task by the tokenizer in the folder, or else those of CLIP's vocabulary.

    Raises:
        UserError: a tokenizer that cannot be read, or none and another vocabulary.
    """
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        return _clip_task(config, str(folder))
    try:
        words = library.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids: Sequence[int] = words(TASK)["input_ids"]
    except Exception as error:  # whatever the library meets in files of anybody
        reason = one_line(error)
        raise UserError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    return ids


def _clip_task(config: Any, where: str) -> Sequence[int]:
    if config.text_encoder_vocab_size != CLIP_WORDS:
        raise UserError(
            f"{where} has a vocabulary of its own ({config.text_encoder_vocab_size} words): give a "
            "folder with its tokenizer (vocab.json, merges.txt), which tells it its task"
        )
    return CLIP_TASK


def _are_numbers(labels: list[str]) -> bool:
    """Whether these are the names that the library gives where there are none."""
    return labels == [f"LABEL_{number}" for number in range(len(labels))]


def _assemble(
    kind_name: str,
    settings: Mapping[str, Any],
    name: str,
    config: Mapping[str, Any] | None,
    classes: Classes,
    spec: InputSpec,
) -> Segmenter:
    if kind_name not in KINDS:
        raise UserError(
            f"transformers has no segmentation network {kind_name!r}{suggest(kind_name, KINDS)}"
        )
    kind = KINDS[kind_name]
    library = _library()
    settled = _config(library, kind, settings, classes)
    try:
        net = getattr(library, kind.model)(settled)
    except Exception as error:  # whatever values of anybody lead it to
        reason = one_line(error)
        raise UserError(f"{PREFIX}:{name} cannot be built: {reason}") from error
    return _segmenter(kind, net, name, config, classes, spec)


def _segmenter(
    kind: Kind,
    net: Any,
    name: str,
    config: Mapping[str, Any] | None,
    classes: Classes,
    spec: InputSpec,
) -> Segmenter:
    described: dict[str, Any] = {"name": name, "weights": "none"}
    if config is not None:
        described[CONFIG_OPTION] = {
            key: _plain(value)
            for key, value in _harmless(config).items()
            if key not in ("id2label", "label2id")
        }
    return Segmenter(
        TransformersNet(net, kind),
        classes,
        spec,
        backbone=kind.backbone,
        min_batch=kind.min_batch,
        of_masks=bool(kind.masks),
        origin=Origin(PREFIX, described),
    )


def _config(library: Any, kind: Kind, held: Mapping[str, Any], classes: Classes | None) -> Any:
    """A configuration object of data alone: it names no code, no file and nothing to download."""
    clean = _harmless(held)
    if classes is not None:
        clean["id2label"] = dict(enumerate(classes.names))
        clean["label2id"] = {name: number for number, name in enumerate(classes.names)}
        clean.pop("num_labels", None)
    try:
        return getattr(library, kind.config).from_dict(clean)
    except Exception as error:  # whatever values of anybody lead it to
        reason = one_line(error)
        raise UserError(f"a configuration of {kind.model} cannot be read: {reason}") from error


def _harmless(held: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what names code or weights to download."""
    dropped = (
        "auto_map",
        "quantization_config",
        "_name_or_path",
        "dtype",
        "torch_dtype",
        "custom_pipelines",
        "architectures",
    )
    found = {
        key: _harmless(value) if isinstance(value, Mapping) and key != "id2label" else value
        for key, value in held.items()
        if key not in dropped
    }
    for key in ("use_pretrained_backbone", "use_pretrained"):
        if key in found:
            found[key] = False
    if found.get("backbone_config"):
        # the name of a backbone would be looked up on the hub
        found = {key: value for key, value in found.items() if key != "backbone"}
    return found


def _plain(value: Any) -> Any:
    """A configuration as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _input(library: Any, kind: Kind, config: Any, folder: Path | None) -> InputSpec:
    """Input spec by the image processor in the folder, or else by that of the kind.

    Its resizing is followed where the network takes one size only: any other sees an image, or a
    crop of a training, at its own scale.
    """
    path = (folder or Path()) / PROCESSOR
    held = read_object(path) if folder is not None and path.is_file() else {}
    defaults = getattr(library, kind.processor)

    def value(key: str, otherwise: Any = None) -> Any:
        found = held.get(key)
        return getattr(defaults, key, otherwise) if found is None else found

    spec = InputSpec((0.0,) * 3, (1.0,) * 3, scale=1.0)
    try:
        if value("do_rescale", True):
            spec = spec._replace(scale=float(value("rescale_factor", 1 / 255)))
        if value("do_normalize", True):
            mean, std = (tuple(map(float, value(key))) for key in ("image_mean", "image_std"))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError(f"image_mean {mean}, image_std {std}")
            spec = spec._replace(mean=mean, std=std)
        spec = spec._replace(bgr=bool(value("do_flip_channel_order", False)))
        if kind.one_size:
            resizing: Resizing = "stretch"
            # the library runs a DPT of images with kept ratio where they are square alone
            if value("do_split_image", False) or value("keep_aspect_ratio", False):
                resizing = "windows"
            elif value("do_pad", False) and not value("size_divisor"):
                resizing = "pad"
            cubic = int(value("resample", 2)) == 3
            size = _size(held.get("size"), config)
            return spec._replace(size=size, bicubic=cubic, resizing=resizing)
        divisor = value("size_divisor") or value("size_divisibility") or 1
        return spec._replace(multiple=max(1, int(divisor)))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def _size(held: Any, config: Any) -> tuple[int, int]:
    """(H, W) that a network of one size takes: of its image processor, or its own."""
    if isinstance(held, Mapping) and "height" in held and "width" in held:
        return int(held["height"]), int(held["width"])
    # a number or a pair, in files of older versions
    side = held if isinstance(held, int | list | tuple) else config.image_size
    return (int(side[0]), int(side[1])) if isinstance(side, list | tuple) else (int(side),) * 2
