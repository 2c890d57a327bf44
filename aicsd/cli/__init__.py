"""The command line: parse, build, call. It decides nothing. One file a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NamedTuple

from aicsd.cli import help as pages
from aicsd.cli.parser import Command, call
from aicsd.errors import UserError, is_out_of_memory, one_line, suggest
from aicsd.messages import say

DESCRIPTION = "Distil a large semantic-segmentation network into a small one."


class Entry(NamedTuple):
    """A command: its line in ``--help``, and the module and name that hold it."""

    help: str
    module: str
    name: str = "COMMAND"

    def load(self) -> Command | Mapping[str, Command]:
        """The command, or its actions by name; imports what it needs, and no more."""
        found: Command | Mapping[str, Command] = getattr(
            import_module(f"aicsd.cli.{self.module}"), self.name
        )
        return found


COMMANDS = {
    "init": Entry("write a config for your own data, with the reason of each value", "init"),
    "train": Entry("train a network on labels only: a teacher, or a baseline", "fit", "TRAIN"),
    "distill": Entry("distil a teacher into a student", "fit", "DISTILL"),
    "evaluate": Entry(
        "evaluate a trained model on a split of a dataset: mIoU and more", "evaluate"
    ),
    "predict": Entry(
        "run inference on images, folders, videos and pipelines: class-id PNGs, overlays", "predict"
    ),
    "visualize": Entry(
        "draw pictures of runs: panels, ICS matrices, intra-class distributions, curves",
        "visualize",
    ),
    "report": Entry("compare runs in one self-contained HTML page", "report"),
    "export": Entry(
        "export a trained model to ONNX, OpenVINO, mobile formats and more, in float or INT8",
        "export",
    ),
    "demo": Entry("show teacher and student on your images in the browser", "demo"),
    "push": Entry("upload a finished run to the Hugging Face Hub, with a model card", "push"),
    "submit": Entry(
        "write predictions as an archive for the benchmark server of a dataset", "submit"
    ),
    "import": Entry(
        "convert a checkpoint of the released AICSD code into a model file", "import_checkpoint"
    ),
    "benchmark": Entry(
        "measure the cost of a training and the latency of models, compare methods: "
        "cost, latency, table, methods",
        "benchmark",
        "ACTIONS",
    ),
    "data": Entry(
        "check, download or convert a dataset: check, prepare, convert", "data", "ACTIONS"
    ),
    "reproduce": Entry("repeat a finished run and compare the result", "reproduce"),
    "debug": Entry("examine a training that failed: replay", "debug", "ACTIONS"),
}
"""Every command of ``aicsd``. A new one is a file here and a line."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 2 and one line on standard error for what a user can fix."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # a broken image is one line of ours; OpenCV would add its own to it
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        sys.exit(_run(arguments))
    except UserError as error:
        if os.environ.get("AICSD_DEBUG"):
            raise
        say(f"error: {error}")
        sys.exit(2)
    except Exception as error:
        if os.environ.get("AICSD_DEBUG") or not is_out_of_memory(error):
            raise
        reason = one_line(error)
        say(f"error: not enough memory; use fewer or smaller images at once: {reason}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def find_command(words: Sequence[str]) -> tuple[str, Command, list[str]]:
    """The command that ``words`` begin with, by its full name, and the rest of them.

    Raises:
        UserError: no command, or an unknown one.
    """
    found = COMMANDS[_chosen("aicsd", words, COMMANDS)].load()
    name, rest = f"aicsd {words[0]}", list(words[1:])
    if isinstance(found, Command):
        return name, found, rest
    action = _chosen(name, rest, found)
    return f"{name} {action}", found[action], rest[1:]


def _chosen(program: str, words: Sequence[str], known: Mapping[str, object]) -> str:
    if not words:
        above = program.removeprefix("aicsd").strip()
        after = f" after {above}" if above else ""
        raise UserError(f"no command{after}; give {', '.join(known)}")
    if words[0] not in known:
        raise UserError(f"unknown command {words[0]!r}{suggest(words[0], known)}")
    return words[0]


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        from aicsd._version import __version__

        print(f"aicsd {__version__}")
        return 0
    if any(word in words for word in pages.FLAGS):
        names = [word for word in words if not word.startswith("-")]
        print(_help(names, pages.EVERYTHING in words), end="")
        return 0
    _, command, rest = find_command(words)
    return call(command, rest)


def _help(names: Sequence[str], everything: bool) -> str:
    if not names:
        entries = {name: entry.help for name, entry in COMMANDS.items()}
        return pages.overview("aicsd", DESCRIPTION, entries)
    entry = COMMANDS[_chosen("aicsd", names, COMMANDS)]
    found = entry.load()
    if not isinstance(found, Command) and len(names) == 1:
        actions = {name: pages.purpose(command) for name, command in found.items()}
        return pages.overview(f"aicsd {names[0]}", entry.help, actions)
    program, command, _ = find_command(names)
    return pages.command_help(program, command, everything)
