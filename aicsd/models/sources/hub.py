"""Networks on the Hugging Face hub: ``hf:user/name`` and ``hf:user/name@revision``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aicsd import hub
from aicsd.data.protocol import Classes
from aicsd.models.model_file import is_foreign_file
from aicsd.models.segmenter import Segmenter
from aicsd.models.sources.base import only_loaded
from aicsd.models.sources.folder import INDEX
from aicsd.runs import MODEL_FILE, OLD_MODEL_FILE

PREFIX = "hf"
SUFFIXES: tuple[str, ...] = ()
SHARED: frozenset[str] = frozenset()


def names() -> list[str]:
    """None: the hub is not listed."""
    return []


def build(options: Mapping[str, Any], classes: Classes) -> Segmenter:  # noqa: ARG001
    """Refuse: such networks are not built."""
    raise only_loaded("the hub")


def load(reference: str) -> Segmenter:
    """The network of ``user/name[@revision]``, of aicsd or of the library of another source.

    Only JSON and safetensors files are read.
    """
    from aicsd.models.load import load_file, load_foreign  # they import the sources

    name = f"{hub.PREFIX}{reference}"
    file = hub.download(name, MODEL_FILE, OLD_MODEL_FILE, INDEX)
    is_foreign = file.name == INDEX or is_foreign_file(file)
    return load_foreign(hub.download_folder(name)) if is_foreign else load_file(file)
