"""aicsd reproduce."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from aicsd.cli.parser import Command
from aicsd.errors import UserError
from aicsd.files import at_home
from aicsd.messages import say
from aicsd.runs import RunFolder


def reproduce(run: str, *, out: str | None = None) -> int:
    """Repeat a finished run from its own config, and compare weights and figures.

    Args:
        run: folder of a finished run.
        out: folder for the repetition; default: a temporary one.
    """
    from aicsd.engine.device import is_first_process
    from aicsd.engine.peers import EndedElsewhereError
    from aicsd.engine.reproduce import repeat_run
    from aicsd.engine.stop import Interrupted

    folder = RunFolder(run)
    keys = folder.read_config() if folder.config.is_file() else {}
    if out is None and (keys.get("devices", 1), keys.get("num_nodes", 1)) != (1, 1):
        raise UserError(f"{folder.path} has several processes, which need one folder: give --out")
    with contextlib.ExitStack() as held:
        if out is None:
            place = Path(held.enter_context(tempfile.TemporaryDirectory())) / folder.path.name
        else:
            place = Path(at_home(out))
        try:
            found = repeat_run(run, place)
        except Interrupted as stop:
            say(str(stop).partition(";")[0])
            return 130
        except EndedElsewhereError:
            return 2
    if not is_first_process():
        return 0
    if not found:
        print(f"{folder.path}: the repetition is identical, weights and figures")
        return 0
    print(f"{folder.path}: the repetition differs")
    for line in found:
        print(f"  {line}")
    return 1


COMMAND = Command(reproduce, reproduce, example="aicsd reproduce runs/aicsd")
