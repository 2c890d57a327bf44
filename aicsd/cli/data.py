"""aicsd data check, aicsd data prepare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from aicsd.cli.common import data_arguments
from aicsd.cli.convert import convert
from aicsd.config import ConfigParser

SHOWN = 100
"""Unusable samples of a split that are named; the others are counted."""
HELP = "check, fetch or convert a dataset: aicsd data check, prepare, convert"


def build_parser() -> ConfigParser:
    return ConfigParser(description=HELP)


def add_actions(parser: ConfigParser) -> None:
    actions = parser.add_subcommands(title="actions", metavar="ACTION")
    actions.add_subcommand("check", _check_parser(), help="find files that cannot be used")
    actions.add_subcommand("prepare", _prepare_parser(), help="download, unpack and check")
    actions.add_subcommand("convert", _convert_parser(), help="what annotators export to a folder")


def _check_parser() -> ConfigParser:
    parser = ConfigParser(
        description="Decode every image and mask; name those that cannot be used, and what is in "
        "the others."
    )
    data_arguments(parser, "splits to check, separated by commas", "train,val")
    parser.add_argument(
        "--sheet", type=str | None,
        help="PNG file that gets images of the first split with their masks over them",
    )  # fmt: skip
    return parser


def _prepare_parser() -> ConfigParser:
    parser = ConfigParser(
        description="Download a dataset where its owners allow it, unpack it and check it."
    )
    from aicsd.data.prepare import DOWNLOADS

    parser.add_argument("dataset", type=str, help=", ".join(DOWNLOADS))
    parser.add_argument("--root", type=str, required=True, help="folder that gets the dataset")
    return parser


def _convert_parser() -> ConfigParser:
    parser = ConfigParser(description="Write what an annotation tool exported as a dataset folder.")
    parser.add_argument("source", type=str, help="folder of the export")
    parser.add_argument("--out", type=str, required=True, help="new folder")
    parser.add_argument("--format", type=str | None, help="recognised from the files without it")
    parser.add_argument("--val", type=float, default=0.1, help="part for val, if there is none")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these images")
    parser.add_argument("--classes", type=str | None, help="table of names and colours")
    parser.add_argument("--background", type=bool, default=True, help="a class of its own")
    parser.add_argument(
        "--empty", type=Literal["unlabelled", "background", "leave_out"], default="unlabelled",
        help="what becomes of images without annotation",
    )  # fmt: skip
    return parser


def run(options: Any) -> int:
    if options.subcommand == "convert":
        return convert(**vars(options.convert))
    if options.subcommand == "prepare":
        return _prepare(options.prepare)
    return _check(options.check)


def _check(options: Any) -> int:
    from aicsd.data import open_dataset, survey
    from aicsd.data.overview import label_sheet, summary
    from aicsd.images import save_image

    data = options.data
    splits = [name.strip() for name in data.split.split(",")]
    unusable = 0
    for split in splits:
        found = survey(data.name, data.root, split, data.options)
        for line in found.problems[:SHOWN]:
            print(f"aicsd: error: {line}", file=sys.stderr)
        if len(found.problems) > SHOWN:
            print(f"aicsd: error: and {len(found.problems) - SHOWN} more", file=sys.stderr)
        print("\n".join(summary(split, found)))
        unusable += len(found.problems)
    if options.sheet is not None:
        dataset = open_dataset(data.name, data.root, splits[0], data.options)
        save_image(label_sheet(dataset), Path(options.sheet))
        print(f"{options.sheet}: images of {splits[0]}")
    return 2 if unusable else 0


def _prepare(options: Any) -> int:
    from aicsd.data.prepare import prepare
    from aicsd.terminal import progress_bar

    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{what} (MB)", note="")
            size = None if total is None else total // 10**6
            bar.update(tasks[what], completed=done // 10**6, total=size)

        text = prepare(options.dataset, Path(options.root), show)
    print(text)
    return 0
