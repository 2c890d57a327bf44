"""aicsd data check, prepare, convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aicsd.cli.convert import convert
from aicsd.cli.parser import Command
from aicsd.data.open import AUTO
from aicsd.data.prepare import DOWNLOADS
from aicsd.inputs import DataSplit

SHOWN = 100
"""Unusable samples of a split that are named; the others are counted."""


def check(*, data: DataSplit | None = None, sheet: str | None = None) -> int:
    """Decode every image and mask; name those that cannot be used, and what is in the others.

    Args:
        data: splits to check, separated by commas; train,val without them.
        sheet: PNG file that gets images of the first split with their masks over them.
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
            print(f"aicsd: error: {line}", file=sys.stderr)
        if len(found.problems) > SHOWN:
            print(f"aicsd: error: and {len(found.problems) - SHOWN} more", file=sys.stderr)
        for line in found.refusals:
            print(f"aicsd: error: {split}: {line}", file=sys.stderr)
        print("\n".join(summary(split, found)))
        unusable += len(found.problems) + len(found.refusals)
    if sheet is not None:
        dataset = open_dataset(name, data.root, splits[0], data.options)
        save_image(label_sheet(dataset), Path(sheet))
        print(f"{sheet}: images of {splits[0]}")
    return 2 if unusable else 0


def prepare(dataset: str, *, root: str) -> int:
    """Download a dataset where its owners allow it, unpack it and check it.

    Args:
        dataset: name of the dataset.
        root: folder that gets the dataset.
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
        notes={"dataset": ", ".join(DOWNLOADS)},
    ),
    "convert": Command(convert, convert, example="aicsd data convert annotations --out my_data"),
}
