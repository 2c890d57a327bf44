"""Networks and datasets by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from aicsd.config import build_config, merge
from aicsd.data import DATASETS, Classes
from aicsd.data.classes_file import distinct_color
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.models.presets import PRESETS
from aicsd.models.settings import DEFAULT_FAMILY
from aicsd.models.sources import SOURCES, has_backbone


def list_datasets() -> list[str]:
    """Names of the datasets that ``data`` may name."""
    return list(DATASETS)


def list_models(pattern: str = "*") -> list[str]:
    """Names of networks that :func:`create_model` builds.

    Args:
        pattern: such as ``resnet*`` or ``torchvision:*``.

    Returns:
        presets, timm's backbones for a DeepLabV3+, and the networks of the other families as
        ``family:name``.
    """
    names = [
        name if source.PREFIX == DEFAULT_FAMILY else f"{source.PREFIX}:{name}"
        for source in SOURCES
        for name in source.names()
    ]
    return [name for name in [*PRESETS, *names] if fnmatch(name, pattern)]


def create_model(name: str, classes: int | Sequence[str] | Classes, **options: Any) -> Segmenter:
    """A new network.

    >>> create_model("mobilenetv2_050", 19, aspp_channels=64).num_parameters()
    1653171

    Args:
        name: one of :func:`list_models`: a preset, a timm backbone for a DeepLabV3+, or
            ``family:name``.
        classes: their number, their names, or names and colours.
        **options: settings of the family, such as ``output_stride=8`` or ``weights="imagenet"``.

    Raises:
        UserError: an unknown name or option.
    """
    if name in PRESETS:
        keys = merge(PRESETS[name], {"weights": "none", "options": options})
        return build_model(build_config(ModelConfig, keys), _with_colors(classes))
    prefix, colon, network = name.partition(":")
    family = prefix if colon else DEFAULT_FAMILY
    if family == DEFAULT_FAMILY:
        config = build_config(ModelConfig, {"backbone": network or name, **options})
    elif has_backbone(family):
        given = {"backbone": network, **options}
        config = build_config(ModelConfig, {"family": family, "options": given})
    else:
        config = build_config(ModelConfig, {"family": name, "options": options})
    return build_model(config, _with_colors(classes))


def _with_colors(classes: int | Sequence[str] | Classes) -> Classes:
    if isinstance(classes, Classes):
        return classes
    names = range(classes) if isinstance(classes, int) else classes
    colors = tuple(distinct_color(number) for number, _ in enumerate(names))
    return Classes(tuple(f"class_{n}" if isinstance(n, int) else n for n in names), colors)
