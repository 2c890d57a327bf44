"""aicsd data check, prepare, convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicsd.cli.convert import NOTES, convert
from aicsd.cli.parser import Command
from aicsd.data.open import AUTO
from aicsd.data.prepare import DOWNLOADS, LISTED
from aicsd.inputs import DataSplit, open_model
from aicsd.messages import say

if TYPE_CHECKING:
    from aicsd.data import SegDataset

SHOWN = 100
"""Unusable samples of a split that are named; the others are counted."""


def check(
    *,
    data: DataSplit | None = None,
    sheet: str | None = None,
    teacher: str | None = None,
    teacher_classes: str | None = None,
    images: int = 20,
    crop: int = 512,
    device: str = "auto",
) -> int:
    """Decode every image and mask, list unusable ones, and count the pixels of each class.

    Args:
        data: splits to check, separated by commas; default: train,val.
        sheet: PNG file for a contact sheet: images of the first split with masks as overlay.
        teacher: network to compare with the labels of the last split: as it is, on training
            crops, shifted by 1 and 2 pixels, and with red and blue swapped.
        teacher_classes: map of the teacher's classes to those of the data, as for distill.
        images: number of images for the teacher.
        crop: side of the training crops for the teacher, in pixels.
        device: device of the teacher: auto, cpu, cuda or mps.
    """
    from aicsd.data import open_dataset, survey
    from aicsd.data.overview import label_sheet, summary
    from aicsd.images import save_image

    data = data or DataSplit()
    name = data.name or AUTO
    splits = [split.strip() for split in (data.split or "train,val").split(",")]
    unusable = 0
    for split in splits:
        found = survey(name, data.root, split, data.options)
        for line in found.problems[:SHOWN]:
            say(f"error: {line}")
        if len(found.problems) > SHOWN:
            say(f"error: and {len(found.problems) - SHOWN} more")
        for line in found.refusals:
            say(f"error: {split}: {line}")
        print("\n".join(summary(split, found)))
        unusable += len(found.problems) + len(found.refusals)
    if sheet is not None:
        dataset = open_dataset(name, data.root, splits[0], data.options)
        save_image(label_sheet(dataset), Path(sheet))
        print(f"{sheet}: images of {splits[0]}")
    if teacher is not None:
        dataset = open_dataset(name, data.root, splits[-1], data.options)
        _check_teacher(teacher, teacher_classes, dataset, splits[-1], images, crop, device)
    return 2 if unusable else 0


def _check_teacher(
    teacher: str,
    class_map: str | None,
    dataset: SegDataset,
    split: str,
    images: int,
    crop: int,
    device: str,
) -> None:
    """Print how well a teacher fits the labels, aligned correctly and in wrong ways."""
    from aicsd.evaluation.alignment import alignment, misalignment
    from aicsd.teacher import with_classes
    from aicsd.terminal import progress_bar

    model = open_model(teacher, device)
    if class_map is not None or model.classes.names != dataset.classes.names:
        model = with_classes(model, dataset.classes, class_map)[0].eval()
    with progress_bar() as bar:
        task = bar.add_task("teacher", total=min(images, len(dataset.labelled)), note="")
        variants = alignment(model, dataset, images, crop, lambda: bar.advance(task))
    print(f"teacher on {split}, mIoU %:")
    for variant in variants:
        print(f"  {variant.name:<24} {100 * variant.miou:6.2f}")
    line = misalignment(variants)
    if line is not None:
        say(f"warning: {line}")


def prepare(dataset: str, *, root: str) -> int:
    """Download a dataset if its licence permits, unpack it and check it.

    Args:
        dataset: name of the dataset.
        root: folder for the dataset.
    """
    from aicsd.data.prepare import prepare as fetch
    from aicsd.terminal import progress_bar

    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{what} (MB)", note="")
            size = None if total is None else total // 10**6
            bar.update(tasks[what], completed=done // 10**6, total=size)

        text = fetch(dataset, Path(root), show)
    print(text)
    return 0


ACTIONS = {
    "check": Command(
        check, check, example="aicsd data check --data.name folder --data.root my_data"
    ),
    "prepare": Command(
        prepare,
        prepare,
        example="aicsd data prepare voc --root data",
        notes={"dataset": ", ".join([*DOWNLOADS, *LISTED])},
    ),
    "convert": Command(
        convert, convert, example="aicsd data convert annotations --out my_data", notes=NOTES
    ),
}
