"""The command line: parse, build, call. It decides nothing. One file a command."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import cv2

from aicsd.cli import (
    benchmark,
    data,
    demo,
    evaluate,
    export,
    fit,
    import_checkpoint,
    predict,
    push,
    report,
    submit,
    visualize,
)
from aicsd.config import ConfigParser, bracket_scales
from aicsd.errors import UserError
from aicsd.runs import RunFolder


class Command(NamedTuple):
    """One command: its line in ``--help``, its arguments, and what it does."""

    help: str
    build_parser: Callable[[], ConfigParser]
    run: Callable[[Any], int]
    """Parsed options -> exit code."""
    add_actions: Callable[[ConfigParser], None] | None = None
    """Adds commands of a second level; jsonargparse wants that done after the first."""


COMMANDS = {
    "train": Command(fit.TRAIN_HELP, fit.build_train_parser, fit.run_train),
    "distill": Command(fit.DISTILL_HELP, fit.build_distill_parser, fit.run_distill),
    "evaluate": Command(evaluate.HELP, evaluate.build_parser, evaluate.run),
    "predict": Command(predict.HELP, predict.build_parser, predict.run),
    "visualize": Command(visualize.HELP, visualize.build_parser, visualize.run),
    "report": Command(report.HELP, report.build_parser, report.run),
    "export": Command(export.HELP, export.build_parser, export.run),
    "demo": Command(demo.HELP, demo.build_parser, demo.run),
    "push": Command(push.HELP, push.build_parser, push.run),
    "submit": Command(submit.HELP, submit.build_parser, submit.run),
    "import": Command(import_checkpoint.HELP, import_checkpoint.build_parser,
                      import_checkpoint.run),
    "benchmark": Command(benchmark.HELP, benchmark.build_parser, benchmark.run,
                         benchmark.add_actions),
    "data": Command(data.HELP, data.build_parser, data.run, data.add_actions),
}  # fmt: skip
"""Every command of ``aicsd``. A new one is a file here and a line."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one line on standard error for what a user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get("AICSD_DEBUG")
    try:
        sys.exit(_run(arguments))
    except UserError as error:
        if debug:
            raise
        print(f"aicsd: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def build_parser() -> ConfigParser:
    """The parser of all commands."""
    from aicsd import __version__

    parser = ConfigParser(
        prog="aicsd",
        version=__version__,
        description="Distil a large semantic-segmentation network into a small one.",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = command.build_parser()
        commands.add_subcommand(name, added, help=command.help)
        if command.add_actions is not None:
            command.add_actions(added)
    return parser


def _run(arguments: list[str]) -> int:
    warnings.filterwarnings("ignore", module="jsonargparse")
    # a broken image is one line of ours; OpenCV would add its own to it
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    parser = build_parser()
    values = parser.instantiate(parser.parse_args(bracket_scales(_expand_resume(arguments))))
    command = values.subcommand
    return COMMANDS[command].run(values[command])


def _expand_resume(arguments: list[str]) -> list[str]:
    """``--resume`` alone means true, and ``--run R --resume`` needs no more: R has the settings."""
    with_value = ("--config=", "--resume=", "--run=")
    split = (a.split("=", 1) if a.startswith(with_value) else [a] for a in arguments)
    arguments = [part for parts in split for part in parts]
    if "--resume" not in arguments:
        return arguments
    place = arguments.index("--resume")
    if arguments[place + 1 : place + 2] not in (["true"], ["false"]):
        arguments = [*arguments[: place + 1], "true", *arguments[place + 1 :]]
    runs = [value for flag, value in pairwise(arguments) if flag == "--run"]
    if not runs or arguments[arguments.index("--resume") + 1] == "false":
        return arguments
    folder = RunFolder(runs[-1])
    folder.check_place(resume=True)
    if "--config" in arguments:
        return arguments
    return [arguments[0], "--config", str(folder.config), *arguments[1:]]
