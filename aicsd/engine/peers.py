"""Processes that train together end together: one line gives the reason, and none hangs.

Each process counts up in a file of its own in the run folder, every few seconds, in a thread. A
process that is killed is noticed at once by those that talk to it. One that hangs or is stopped is
noticed because its count no longer changes: 60 seconds later all others end. Beside its count, each
writes for how many counts it has waited for others. If all wait for each other, as they do when the
network between them fails, all end too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers import subprocess_script
from torch import distributed

from aicsd.engine.stop import Interrupted
from aicsd.errors import UserError
from aicsd.messages import say
from aicsd.runs import RunFolder

LIMIT = "AICSD_PROCESS_TIMEOUT"
"""Variable of the environment: seconds without a new count after which a process is taken for lost;
60 without it."""
BEAT, GRACE = 2.0, 5.0
"""Seconds between two counts, and seconds in which an ending process may report the reason, before
the others report what they observe; a tenth of the limit where that is less."""
COLLECTIVE = ("torch.distributed", "torch.nn.parallel.distributed")
BACKWARD = "torch.autograd.graph"
"""Modules of PyTorch in which a process waits for others; in the last one it may compute, too."""
IDLE = 0.1
"""Part of a core that a process which waits for others uses at most."""
DONE = "done"


class EndedElsewhereError(UserError):
    """Another process has ended the run and reported the reason."""


_asked = 0
"""Calls of ``any_process``: a process in which it grows is not stuck."""
_children: list[subprocess.Popen[bytes]] = []
"""Processes that this one has started."""


def launch(fabric: Fabric) -> None:
    """Start the other processes, or connect to them.

    Fabric would kill this process within seconds of the end of another one, even while it saves.
    """
    observer = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = _remember
    try:
        fabric.launch()
    finally:
        subprocess_script._launch_process_observer = observer


def _remember(child_processes: list[subprocess.Popen[bytes]]) -> None:
    _children.extend(child_processes)


def any_process(flag: bool, fabric: Fabric) -> bool:
    """Whether ``flag`` is set in any process; all of them must call this."""
    global _asked
    _asked += 1
    if fabric.world_size == 1:
        return flag
    count = torch.tensor(int(flag), device=fabric.device)
    distributed.all_reduce(count, distributed.ReduceOp.MAX)
    return bool(count.item())


@contextmanager
def ending_together(folder: RunFolder, fabric: Fabric) -> Iterator[None]:
    """Train together with the other processes of a run.

    Raises:
        EndedElsewhereError: another process has ended the run and reported the reason.
        Interrupted: all received a signal to stop; its text is empty if another process prints it.
        UserError: another process is gone, without a word.
    """
    if fabric.world_size == 1:
        yield
        return
    watch = _Watch(folder, fabric.global_rank, fabric.world_size)
    watch.start()
    try:
        yield
    except BaseException as error:
        told = watch.explain(error)
        watch.stop()
        _end_children()
        raise told from error
    else:
        watch.stop()


class _Watch:
    """Counts for this process, and watches the counts of the others."""

    def __init__(self, folder: RunFolder, rank: int, world: int) -> None:
        self._run, self._place, self._rank, self._world = folder, folder.processes, rank, world
        self._limit = _limit()
        self._beat = min(BEAT, self._limit / 10)
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="aicsd-peers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._write(DONE)  # others that work longer, on a report, do not wait for it

    def explain(self, error: BaseException) -> BaseException:
        """The error that this process ends with."""
        lost = _is_of_connection(error)
        if (lost or isinstance(error, EndedElsewhereError)) and self._is_told(_grace()):
            return EndedElsewhereError("another process has ended the run")
        if not self._tell():
            if isinstance(error, Interrupted):
                return Interrupted("")
            return EndedElsewhereError(str(error))
        if lost:
            return UserError(f"another of the {self._world} processes has ended; {self._advice()}")
        return error

    def _advice(self) -> str:
        return f"continue with --run {self._run.path} --resume"

    def _tell(self) -> bool:
        """Whether this process reports the reason of the end: the first to call this does."""
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            (self._place / "told").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # the disk is full, or the folder is gone: better twice than not at all
            return True
        return True

    def _is_told(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (self._place / "told").exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._place.mkdir(parents=True, exist_ok=True)
            (self._place / str(self._rank)).write_text(text)

    def _work(self) -> None:
        counts = dict.fromkeys(set(range(self._world)) - {self._rank}, "")
        # in counts of its own: a machine that slept has missed none of them
        silent = dict.fromkeys(counts, 0)
        number = waited = 0
        before: tuple[float, int] = (time.process_time(), _asked)
        while not self._ended.wait(self._beat):
            now = time.process_time(), _asked
            is_idle = now[0] - before[0] < IDLE * self._beat
            waited = waited + 1 if now[1] == before[1] and self._waits(is_idle) else 0
            number, before = number + 1, now
            self._write(f"{number} {waited}")
            for rank in counts:
                seen = _read(self._place / str(rank))
                silent[rank] = silent[rank] + 1 if seen == counts[rank] != DONE else 0
                counts[rank] = seen
                if silent[rank] * self._beat >= self._limit:
                    self._end(
                        f"process {rank} of {self._world} (from 0) has not answered for "
                        f"{self._limit:.0f} s"
                    )
            if min(waited, *map(_waited, counts.values())) * self._beat >= self._limit:
                self._end(
                    f"all {self._world} processes have waited for each other for "
                    f"{self._limit:.0f} s: perhaps the network between them is down"
                )

    def _waits(self, is_idle: bool) -> bool:
        """Whether the main thread waits for another process at this moment."""
        frame = sys._current_frames().get(self._main)
        module = "" if frame is None else str(frame.f_globals.get("__name__"))
        return module.startswith(COLLECTIVE) or (module == BACKWARD and is_idle)

    def _end(self, reason: str) -> None:
        """End this process, whose main thread waits for a lost one."""
        if self._tell():
            say(f"error: {reason}; {self._advice()}")
        _end_children(0)
        os._exit(2)


def _waited(count: str) -> int:
    """Counts for which another process has waited."""
    waited = count.partition(" ")[2]
    return int(waited) if waited.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _is_of_connection(error: BaseException) -> bool:
    """Whether an error means that another process cannot be reached."""
    if isinstance(error, distributed.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _limit() -> float:
    return float(os.environ.get(LIMIT, "60"))


def _grace() -> float:
    return min(GRACE, _limit() / 10)


def _end_children(seconds: float | None = None) -> None:
    """Wait for the processes that this one has started; end those that do not."""
    children: Sequence[subprocess.Popen[bytes]] = tuple(_children)
    end = time.monotonic() + (_grace() if seconds is None else seconds)
    for child in children:
        try:
            child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    _children.clear()
