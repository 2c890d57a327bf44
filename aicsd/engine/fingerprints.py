"""Inputs of a run: fingerprints of data and teacher, which a resumed run compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aicsd.data.protocol import SegDataset, Splits
from aicsd.data.wrappers import spread
from aicsd.errors import UserError
from aicsd.files import read_json, write_text
from aicsd.run_settings import against_divergence, flatten
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.teacher.cache import fingerprint

FORMAT = 1
MASKS = 4
"""Masks of a split whose content is compared: reading all of them would take minutes."""


def describe_inputs(
    splits: Splits, epoch_batches: int, teacher: Teacher | None, begun: RunFolder | None = None
) -> dict[str, Any]:
    """Classes, images, batches and teacher of a run, as ``inputs.json`` holds them.

    Args:
        splits: data of the run.
        epoch_batches: batches of an epoch that one process trains on.
        teacher: as it was loaded, before it is changed into a faster form.
        begun: folder of a resumed run; a digest in it may be of an earlier version.
    """
    known = None
    if begun is not None and begun.inputs.is_file():
        known = read_json(begun.inputs).get("teacher")
    return {
        "format": FORMAT,
        "classes": list(splits.train.classes.names),
        "epoch_batches": epoch_batches,
        "train": _describe_split(splits.train),
        "val": _describe_split(splits.val),
        "teacher": None if teacher is None else fingerprint(teacher.model, known),
    }


def save_inputs(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Write ``inputs.json`` into a run folder."""
    write_text(folder.inputs, json.dumps(inputs, indent=1) + "\n", durable=True)


def check_inputs(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Refuse to resume a run on other data, or with another teacher, than it was started with.

    A run of a version that kept no ``inputs.json`` is not checked.

    Raises:
        UserError: something that changes the result.
    """
    if not folder.inputs.is_file():
        return
    before = read_json(folder.inputs)
    changed = None
    if before.get("classes") != inputs["classes"]:
        changed = f"the classes {before.get('classes')}, and the data has {inputs['classes']} now"
    elif before.get("teacher") != inputs["teacher"]:
        changed = "another teacher"
    elif before.get("epoch_batches") != inputs["epoch_batches"]:
        changed = (
            f"{before.get('epoch_batches')} batches an epoch for each process, and now has "
            f"{inputs['epoch_batches']}"
        )
    for split in ("train", "val"):
        difference = _compare_split(split, before.get(split), inputs[split])
        changed = difference or changed
    if changed is not None:
        raise UserError(
            f"resume: {folder.path} was started with {changed}; give it what it was started with, "
            "or choose another run folder"
        )


def changed_settings(folder: RunFolder, settings: Mapping[str, Any]) -> dict[str, str]:
    """``resumed_from`` of a run that is resumed with ``settings``, as ``inputs.json`` holds it."""
    before, now = flatten(folder.read_config()), flatten(settings)
    changed = dict(folder.resumed_from)
    for key in sorted(before.keys() & now.keys()):
        decides = key == "epochs" or against_divergence(key)
        held = changed[key].split(", ") if key in changed else []
        if decides and before[key] != now[key] and held[-1:] != [str(before[key])]:
            changed[key] = ", ".join([*held, str(before[key])])
    return changed


def _describe_split(dataset: SegDataset) -> dict[str, Any]:
    labelled = list(dataset.labelled)
    shown = [labelled[place] for place in spread(min(MASKS, len(labelled)), len(labelled))]
    return {
        "images": len(dataset),
        "names": hashlib.sha256(json.dumps(list(dataset.names)).encode()).hexdigest(),
        "masks": [_mask_digest(dataset, index) for index in shown],
    }


def _mask_digest(dataset: SegDataset, index: int) -> str | None:
    """Digest of one mask; None for a sample that cannot be read, which the training will name."""
    try:
        mask = dataset.read(index).mask
    except UserError:
        return None
    return hashlib.sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()


def _compare_split(split: str, before: Any, now: dict[str, Any]) -> str | None:
    if not isinstance(before, dict):
        return f"an unknown {split} split"
    if before.get("images") != now["images"]:
        return f"{before.get('images')} {split} images, and there are {now['images']} now"
    if before.get("names") != now["names"]:
        return f"other {split} images"
    masks = zip(before.get("masks", ()), now["masks"], strict=False)
    if any(None not in pair and pair[0] != pair[1] for pair in masks):
        return f"other labels of the {split} images"
    return None
