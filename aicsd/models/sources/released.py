"""Checkpoints of the released AICSD code (https://github.com/AmirMansurian/AICSD) and its family.

The family descends from pytorch-deeplab-xception and names its weights alike. Such a checkpoint is
a pickle, and a pickle can run anything when it is read: here it is read by an unpickler that knows
tensors, containers and numbers, and refuses all else without running it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aicsd.data.open import classes_by_count
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models.backbone import OUTPUT_STRIDES
from aicsd.models.deeplabv3plus import DeepLabV3Plus
from aicsd.models.input_spec import InputSpec
from aicsd.models.model_file import classes_of, input_of, require_finite
from aicsd.models.segmenter import Segmenter
from aicsd.models.sources import deeplabv3plus
from aicsd.models.sources.base import nameless_classes, only_loaded
from aicsd.models.state_keys import shorten, state_differences
from aicsd.types import IGNORE_INDEX

PREFIX = "released"
SUFFIXES: tuple[str, ...] = (".tar", ".pth", ".pt")
SHARED: frozenset[str] = frozenset()

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("conv2", (2, 2, 2, 2)): "resnet18",
    ("conv2", (3, 4, 6, 3)): "resnet34",
    ("conv3", (3, 4, 6, 3)): "resnet50",
    ("conv3", (3, 4, 23, 3)): "resnet101",
}
"""Backbones by the last convolution of a block and the number of blocks of each stage."""

FOREIGN_BACKBONES = {"backbone.block1.": "Xception", "backbone.layer5.": "DRN"}
"""Backbones of the family that timm has not in this form, by a key that only they have."""

UNUSED = re.compile(r"^decoder\.conv2\.|\.cbam\.")
"""Parts that some versions hold for their distillation losses and never use in ``forward``."""

HEAD = {
    "aspp.image_pool.0": "aspp.global_avg_pool.1",
    "aspp.image_pool.1": "aspp.global_avg_pool.2",
    "aspp.project.0": "aspp.conv1",
    "aspp.project.1": "aspp.bn1",
    "reduce_low.0": "decoder.conv1",
    "reduce_low.1": "decoder.bn1",
    "fuse1.0": "decoder.last_conv.0",
    "fuse1.1": "decoder.last_conv.1",
    **{f"aspp.branches.{i}.0": f"aspp.aspp{i + 1}.atrous_conv" for i in range(4)},
    **{f"aspp.branches.{i}.1": f"aspp.aspp{i + 1}.bn" for i in range(4)},
}
"""Names of the layers of the head here -> in the checkpoint."""

DECODER_ENDS = {
    8: {"fuse2.0": 4, "fuse2.1": 5, "classifier": 8},
    6: {"fuse2.0": 3, "fuse2.1": 4, "classifier": 6},
}
"""Layer -> place in ``decoder.last_conv``, by the place of its classifier: 8, or 6 in versions
without dropout."""

MOBILENET_STEM = {"conv_stem": 0, "bn1": 1}
MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
MOBILENET_LAYERS = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
MOBILENET_FIRST = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}
"""Blocks of each stage, and the place of a layer in its block; the first block does not expand."""


def names() -> list[str]:
    """None: the networks of this code are files."""
    return []


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:  # noqa: ARG001
    """Refuse: such networks are not built."""
    raise only_loaded("the released code")


def load(reference: str) -> Segmenter:
    """The network of a checkpoint, which is taken to have output stride 16."""
    return import_checkpoint(Path(reference))[0]


def import_checkpoint(
    path: Path, output_stride: int = 16, classes: Classes | None = None
) -> tuple[Segmenter, dict[str, Any]]:
    """A network of the released code in evaluation mode, and facts from its file.

    Args: those of :func:`read_checkpoint`, which also names the errors.

    Returns:
        The network, and ``imported_from``, ``epoch``, ``best_pred`` and ``left_out``.
    """
    header, state = read_checkpoint(path, output_stride, classes)
    require_finite(path, state)
    model = deeplabv3plus.build(header["architecture"], classes_of(header))
    model.net.load_state_dict(state)
    return model.with_input(input_of(header)).eval(), header["info"]


def read_checkpoint(
    path: Path, output_stride: int = 16, classes: Classes | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint of the released code into a header and weights, as of our own files.

    The network that header and weights make has the logits of the published one: ResNet-18, -34,
    -50, -101 and MobileNetV2 (with ``released_layout``), at any size of the input.

    Args:
        path: a dict with ``state_dict``, or a state dict alone; zip or the older format of
            ``torch.save``; with or without the ``module.`` of ``DataParallel``.
        output_stride: output stride of the training; the weights do not contain it.
        classes: names and colours; without them VOC for 21 and Cityscapes for 19 classes, and
            generated ones for other numbers.

    Returns:
        The header (architecture, classes, palette, input, info) and the weights by the names
        of :class:`DeepLabV3Plus`.

    Raises:
        UserError: not a checkpoint, more in it than tensors and numbers, another architecture,
            missing or unknown keys, wrong shapes, or ``classes`` of another number.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {output_stride}; allowed are {OUTPUT_STRIDES}")
    content = _unpickle(path)
    stored = _state_dict(content, path)
    backbone = _find_backbone(stored, path)
    end = DECODER_ENDS[6 if "decoder.last_conv.6.weight" in stored else 8]
    classifier = f"decoder.last_conv.{end['classifier']}.weight"
    count = _width(stored, classifier, 21)
    architecture: dict[str, Any] = {
        "backbone": backbone,
        "output_stride": output_stride,
        "aspp_channels": _width(stored, "aspp.conv1.weight", 256),
        "decoder_channels": _width(stored, "decoder.last_conv.0.weight", 256),
        "low_level_channels": _width(stored, "decoder.conv1.weight", 48),
        "released_layout": backbone.startswith("mobilenetv2_"),
    }
    with torch.device("meta"):
        expected = DeepLabV3Plus(num_classes=count, **architecture).state_dict()
    names = {key: _name_in_checkpoint(key, backbone, end) for key in expected}
    left_out = _check(path, backbone, stored, {names[key]: expected[key] for key in expected})
    # a checkpoint older than PyTorch 0.4.1 does not count batches
    zero = torch.zeros((), dtype=torch.long)
    state = {key: stored.get(name, zero) for key, name in names.items()}
    classes = _name_classes(path, count, classes)
    header = {
        "family": deeplabv3plus.PREFIX,
        "architecture": architecture,
        "classes": list(classes.names),
        "palette": [list(color) for color in classes.palette],
        "input": InputSpec()._asdict(),
        "info": {
            "imported_from": path.name,
            "epoch": _number(content.get("epoch")),
            "best_pred": _number(content.get("best_pred")),
            "left_out": left_out,
        },
    }
    return header, state


class _NumPyDtype:
    """Stands in for ``numpy.dtype`` in a pickle: it keeps the code of a number."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            raise pickle.UnpicklingError("a big-endian number")


def _numpy_scalar(dtype: _NumPyDtype, data: bytes) -> float:
    """Stands in for the function that NumPy pickles its scalars with."""
    if not isinstance(dtype, _NumPyDtype) or not re.fullmatch(r"[fiu][248]|[iu]1", dtype.code):
        raise pickle.UnpicklingError("a NumPy scalar that is not a number")
    (value,) = np.frombuffer(data, np.dtype(f"<{dtype.code}")).tolist()
    return float(value)


def _unpickle(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_NumPyDtype, "numpy.dtype"),
        (_numpy_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
        (_numpy_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        reason = " ".join(str(error).split())
        found = re.search(r"GLOBAL ([\w.]+)", reason)
        if found:
            raise UserError(
                f"{path} holds {found[1].rstrip('.')}, which is neither tensor nor number; reading "
                "it could run code, so it is refused: save its state_dict alone, where you trust it"
            ) from error
        raise UserError(f"{path} is not a readable checkpoint: {_why(path, reason)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict with a state_dict")
    return content


def _why(path: Path, reason: str) -> str:
    """Kind of the file in place of a checkpoint, or PyTorch's reason without its advice."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; git lfs pull fetches the file"
    if start.startswith((b"<!", b"<html", b"<HTML")):
        return "it is a web page; download the file itself"
    cause = reason.partition("WeightsUnpickler error: ")[2] or reason
    return cause[:200] or "it is damaged"


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: its state_dict is empty or no dict; nothing to import")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {key!r} is a {type(value).__name__}, not a tensor; expected a dict with "
                "a state_dict, or a state_dict alone"
            )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _find_backbone(stored: Mapping[str, Tensor], path: Path) -> str:
    for prefix, name in FOREIGN_BACKBONES.items():
        if any(key.startswith(prefix) for key in stored):
            raise UserError(
                f"{path} has the backbone {name}, which timm does not offer in this form; "
                f"importable are {', '.join([*RESNETS.values(), 'mobilenetv2_100'])}"
            )
    if any(key.startswith("backbone.features.") for key in stored):
        return "mobilenetv2_100"
    blocks = tuple(len(_blocks(stored, f"backbone.layer{stage}.")) for stage in (1, 2, 3, 4))
    last = "conv3" if "backbone.layer1.0.conv3.weight" in stored else "conv2"
    if (last, blocks) in RESNETS:
        return RESNETS[last, blocks]
    if any(blocks):
        raise UserError(
            f"{path} has a ResNet with {blocks} blocks as backbone; importable are "
            f"{', '.join(RESNETS.values())}"
        )
    raise UserError(
        f"{path} is not a DeepLabV3+ of the released AICSD code: no backbone in its keys "
        f"({shorten(sorted(stored), 3)})"
    )


def _blocks(stored: Mapping[str, Tensor], stage: str) -> set[str]:
    return {key.removeprefix(stage).split(".")[0] for key in stored if key.startswith(stage)}


def _width(stored: Mapping[str, Tensor], key: str, default: int) -> int:
    """Channels that the convolution ``key`` gives; the default if it is missing, found later."""
    return stored[key].shape[0] if key in stored and stored[key].ndim == 4 else default


def _name_in_checkpoint(key: str, backbone: str, decoder_end: Mapping[str, int]) -> str:
    """Name of the weight ``key`` of :class:`DeepLabV3Plus` in a checkpoint."""
    layer, leaf = key.rsplit(".", 1)
    if layer in HEAD:
        return f"{HEAD[layer]}.{leaf}"
    if layer in decoder_end:
        return f"decoder.last_conv.{decoder_end[layer]}.{leaf}"
    layer = layer.removeprefix("backbone.body.")
    if backbone.startswith("mobilenetv2_"):
        layer = _mobilenet_layer(layer)
    return f"backbone.{layer}.{leaf}"


def _mobilenet_layer(layer: str) -> str:
    """``blocks.1.0.conv_dw`` -> ``features.2.conv.3``."""
    if layer in MOBILENET_STEM:
        return f"features.0.{MOBILENET_STEM[layer]}"
    _, stage, block, part = layer.split(".")
    index = 1 + sum(MOBILENET_STAGES[: int(stage)]) + int(block)
    places = MOBILENET_FIRST if index == 1 else MOBILENET_LAYERS
    return f"features.{index}.conv.{places[part]}"


def _check(
    path: Path, backbone: str, stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    """Refuse other keys or shapes than ``expected``; return the keys that no result depends on."""
    extra = sorted(set(stored) - set(expected))
    left_out = [key for key in extra if UNUSED.search(key) or _is_copy(key, stored)]
    rest = {key: value for key, value in stored.items() if key not in left_out}
    different = state_differences(expected, rest, listed=5)
    if different:
        raise UserError(
            f"{path} does not fit a DeepLabV3+ on {backbone} of the released code: {different}"
        )
    return [key for key in left_out if UNUSED.search(key)]


def _is_copy(key: str, stored: Mapping[str, Tensor]) -> bool:
    """MobileNetV2 holds the same layers once more, under two other names."""
    original = re.sub(r"^backbone\.(low|high)_level_features\.", "backbone.features.", key)
    return original != key and original in stored and torch.equal(stored[key], stored[original])


def _name_classes(path: Path, count: int, classes: Classes | None) -> Classes:
    if not 1 <= count <= IGNORE_INDEX:
        raise UserError(f"{path} has {count} classes; 1 to {IGNORE_INDEX} are possible")
    if classes is None:
        return classes_by_count(count) or nameless_classes(count)
    if len(classes.names) != count:
        raise UserError(f"classes: {len(classes.names)} names for the {count} classes of {path}")
    return classes


def _number(value: object) -> float | None:
    """A number of the training as plain Python; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return value if isinstance(value, int | float) else None
