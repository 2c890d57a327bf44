"""The report of a conversion: a table, what was left out and why, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from aicsd.data.convert.source import Remark
from aicsd.data.convert.write import Written
from aicsd.data.folder import UNLABELLED
from aicsd.data.protocol import Classes
from aicsd.types import IGNORE_INDEX

LEFT_OUT_FILE = "left_out.txt"
MAX_LINES = 100_000
"""Lines of that file."""
_SHOWN = 20
"""Reasons of one kind that the report shows."""
_KINDS = (
    ("file", "annotation files left out"),
    ("image", "images left out"),
    ("object", "objects left out (their pixels are ignored where their place is known)"),
    ("pixel", "pixels ignored"),
    ("note", "notes"),
)
_ORDER = ("train", "val", "test")


class Conversion(NamedTuple):
    """Summary of a conversion."""

    format: str
    out: Path
    classes: Classes
    written: Written

    def splits(self) -> list[str]:
        """The splits with masks, train first."""
        rank = {split: number for number, split in enumerate(_ORDER)}
        found = [split for split in self.written.images if split != UNLABELLED]
        return sorted(found, key=lambda split: (rank.get(split, len(rank)), split))

    def text(self) -> str:
        """The whole report."""
        parts = [self._images(), self._pixels(), *summary(self.written.remarks), self._next()]
        return "\n\n".join(part for part in parts if part)

    def _images(self) -> str:
        images = self.written.images
        order = [*self.splits(), *([UNLABELLED] if UNLABELLED in images else [])]
        counts = ", ".join(f"{images[split]} {split}" for split in order)
        return f"{self.format} -> {self.out}: {counts}; {len(self.classes.names)} classes"

    def _pixels(self) -> str:
        splits = self.splits()
        rows = [["pixels", *splits]]
        named = [*enumerate(self.classes.names), (IGNORE_INDEX, "(ignored)")]
        totals = {split: max(int(self.written.pixels[split].sum()), 1) for split in splits}
        for class_id, name in named:
            held = [int(self.written.pixels[split][class_id]) for split in splits]
            shares = (
                f"{number} ({100 * number / totals[split]:.1f} %)"
                for split, number in zip(splits, held, strict=True)
            )
            rows.append([name, *shares])
        return _aligned(rows)

    def _next(self) -> str:
        data = f"--data.name folder --data.root {_quoted(self.out)}"
        splits = ",".join(self.splits())
        split = "" if splits == "train,val" else f" --data.split {splits}"
        return (
            f"next:\n  aicsd data check {data}{split}\n"
            f"  aicsd train --config folder/teacher --data.root {_quoted(self.out)} "
            "--run runs/teacher"
        )


def summary(remarks: Iterable[Remark]) -> list[str]:
    """A block for every kind of remark: how many for each reason, and the first place."""
    blocks = []
    remarks = list(remarks)
    for kind, title in _KINDS:
        counts: dict[str, int] = {}
        first: dict[str, str] = {}
        for remark in remarks:
            if remark.kind == kind:
                counts[remark.reason] = counts.get(remark.reason, 0) + remark.number
                first.setdefault(remark.reason, remark.where)
        ordered = sorted(counts, key=lambda reason: -counts[reason])
        lines = [
            f"  {_number(kind, counts[reason])}{reason} "
            f"({'first: ' if counts[reason] > 1 else ''}{printable(first[reason])})"
            for reason in ordered[:_SHOWN]
        ]
        if len(ordered) > _SHOWN:
            lines.append(f"  and {len(ordered) - _SHOWN} more reasons, in {LEFT_OUT_FILE}")
        if lines:
            blocks.append("\n".join([f"{title}:", *lines]))
    return blocks


def _number(kind: str, count: int) -> str:
    return "" if kind == "note" and count == 1 else f"{count}: "


def left_out_lines(remarks: Iterable[Remark]) -> list[str]:
    """One line for everything that was left out."""
    found = [remark for remark in remarks if remark.kind != "note"]
    lines = [f"{r.kind}: {r.reason}: {printable(r.where)} ({r.number})" for r in found[:MAX_LINES]]
    if len(found) > MAX_LINES:
        lines.append(f"and {len(found) - MAX_LINES} more")
    return lines


def printable(text: str) -> str:
    """Text without line breaks and characters that terminals cannot show."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _quoted(path: Path) -> str:
    return shlex.quote(printable(str(path)))


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)
