"""Networks on the Hugging Face hub: ``hf:user/name`` and ``hf:user/name@revision``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aicsd import hub
from aicsd.data.protocol import Classes
from aicsd.models.segmenter import Segmenter
from aicsd.models.sources.base import only_loaded
from aicsd.runs import MODEL_FILE, OLD_MODEL_FILE

PREFIX = "hf"
SUFFIXES: tuple[str, ...] = ()


def names() -> list[str]:
    """None: the hub is not listed."""
    return []


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:  # noqa: ARG001
    """Refuse: such networks are not built."""
    raise only_loaded("the hub")


def load(reference: str) -> Segmenter:
    """The network of ``user/name[@revision]``; only its safetensors file is read."""
    from aicsd.models.load import load_file  # it imports the sources

    return load_file(hub.download(f"{hub.PREFIX}{reference}", MODEL_FILE, OLD_MODEL_FILE))
