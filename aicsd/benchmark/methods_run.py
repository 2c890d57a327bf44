"""Runs the trainings of a benchmark side by side, each in a process and a run folder of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

import yaml

from aicsd.benchmark.methods import Benchmark, Cell, Key, identity_of
from aicsd.benchmark.methods_decide import Decider
from aicsd.benchmark.methods_results import Results, read_cell, step_time
from aicsd.engine.finite import NonFiniteLossError
from aicsd.engine.stop import stop_signal
from aicsd.errors import UserError, one_line
from aicsd.files import write_text
from aicsd.run_config import DistillConfig
from aicsd.runs import RunFolder

POLL_SECONDS = 0.2
END_SECONDS = 300
"""Time within which a training saves its state after a signal to end."""
WATCH_PARENT = """
import os, signal, sys, threading
def wait():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=wait, daemon=True).start()
"""
"""Program that ends its process when the process at the other end of its standard input is gone.

It reads the descriptor: a thread inside ``sys.stdin.read`` holds a lock for which every forked
process that loads images would wait for ever.
"""
RUN_AICSD = f"{WATCH_PARENT}from aicsd.cli import main\nmain()"


@dataclass
class Running:
    """A training in its process."""

    cell: Cell
    folder: RunFolder
    process: Popen[bytes]
    begin: float = field(default_factory=time.monotonic)


@dataclass
class CampaignOutcome:
    """Outcome of a call.

    Args:
        failed: last line of the log of each training that failed.
        waiting: cells that have no result.
        stopped: whether a signal ended it.
    """

    failed: dict[Key, str]
    waiting: list[Key]
    stopped: bool


class Campaign:
    """Trains what has no result yet, the most valuable cells first.

    A cell is recognised by its settings: a finished run in the folder is taken as it is, whatever
    its name, and an interrupted one is resumed.

    Args:
        benchmark: from the file.
        runs: folder of the run folders; beside each are its config and its output.
        results: finished cells; every further one is added.
        on_result: called after each cell.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        runs: Path,
        results: Results,
        on_result: Callable[[], object] = lambda: None,
    ) -> None:
        self.benchmark, self.runs, self.results = benchmark, runs, results
        self.on_result = on_result
        results.describe(benchmark)
        self._decider = Decider(benchmark, results)
        self._order = benchmark.order()
        self._known = _read_folders(runs)
        self._running: list[Running] = []
        self._failed: dict[Key, str] = {}
        self._undecided: dict[Key, str] = {}

    def run(self, jobs: int, seconds: float = float("inf")) -> CampaignOutcome:
        """Train until everything is done, the time is over, or SIGINT or SIGTERM arrives.

        Running trainings then save a checkpoint, and the next call resumes them.

        Args:
            jobs: trainings side by side.
            seconds: time to train.
        """
        deadline = time.monotonic() + seconds
        with stop_signal() as stop:
            while not stop and time.monotonic() < deadline:
                while len(self._running) < jobs and (cell := self._next()) is not None:
                    self._start(cell, jobs)
                # one at a time, so that processes are looked after; and only where nothing is left
                # to start, for measuring takes seconds
                known = len(self._running) < jobs and self._measure(most=1)
                if not self._running:
                    if not known:
                        break
                    continue  # a row may have waited for what is known now
                time.sleep(POLL_SECONDS)
                self._collect()
            self._end()
            stopped = bool(stop)
            if not stopped and time.monotonic() < deadline:
                self._measure()
        self._next(measure=False)  # takes over what a decision has made known
        self._note()
        waiting = [key for key in self._order if key not in self.results.cells]
        return CampaignOutcome(self._failed, waiting, stopped)

    def _measure(self, most: int | None = None) -> bool:
        """Compare the time of a step with the baseline's, for rows that have a result.

        Returns:
            Whether something is known that was not before.
        """
        rows = [
            row.name
            for row in self.benchmark.rows.values()
            if row.name != self.benchmark.baseline and not row.is_control
        ]
        done = {key._replace(seed=self.benchmark.seeds[0]) for key in self.results.cells}
        waiting = [
            key
            for key in sorted(done)
            if key.row in rows and step_time(key) not in self.results.decided
        ]
        found = 0
        for key in waiting:
            self._decider.ratio(key)
            if step_time(key) in self.results.decided:
                found += 1
                self._note()
            if found == most:
                break
        return found > 0

    def _next(self, measure: bool = True) -> Cell | None:
        """The most valuable cell to train; all that have a result somewhere are taken over."""
        first: Cell | None = None
        taken = True
        while taken:
            taken, first = False, None
            busy = [running.cell.identity for running in self._running]
            for key in self._order:
                for cell in self._cells(key, measure=measure and first is None):
                    if cell.key in self.results.cells or cell.key in self._failed:
                        continue
                    if self._take(cell):
                        taken = True
                    elif first is None and cell.identity not in busy:
                        first = cell
        return first

    def _cells(self, key: Key, measure: bool) -> list[Cell]:
        """Trainings to do for a cell; none, and a failure, if they cannot be decided on."""
        place = key._replace(seed=self.benchmark.seeds[0])
        if place not in self._undecided:
            try:
                return self._decider.cells(key, measure=measure)
            except (UserError, NonFiniteLossError) as error:
                self._undecided[place] = one_line(error, 500)
                self._say(f"{key.student} {key.row}: failed: {self._undecided[place]}")
        self._failed[key] = self._undecided[place]
        return []

    def _take(self, cell: Cell) -> bool:
        """Record an existing result of the cell; return whether there is one."""
        found = self.results.find(cell.identity)
        if found is None:
            folders = [folder for folder, identity in self._known if identity == cell.identity]
            finished = next((folder for folder in folders if folder.is_finished), None)
            if finished is None:
                return False
            found = read_cell(finished)
        self.results.add(cell.key, found)
        return True

    def _start(self, cell: Cell, jobs: int) -> None:
        folder = self._folder(cell)
        name = folder.path.name
        # without shared objects, which YAML would name
        plain = json.loads(json.dumps({**cell.options, "in_benchmark": True}))
        config, log = self.runs / f"{name}.yaml", self.runs / f"{name}.log"
        write_text(config, yaml.safe_dump(plain, sort_keys=False))
        command = [
            sys.executable,
            "-c",
            RUN_AICSD,
            "distill",
            "--config",
            str(config),
            "--run",
            str(folder.path),
        ]
        if folder.config.is_file():
            command.append("--resume")
        threads = max(1, _cores() // jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with log.open("ab") as output:
            # a session of its own: a Ctrl-C reaches the training once, through this process
            process = Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=PIPE,
                env=environment,
                start_new_session=True,
            )
        self._running.append(Running(cell, folder, process))
        self._say(f"{name}: {'continues' if '--resume' in command else 'starts'}")

    def _folder(self, cell: Cell) -> RunFolder:
        """Folder of the run that was cut, or a new one."""
        busy = [running.folder.path for running in self._running]
        for folder, identity in self._known:
            if identity == cell.identity and folder.path not in busy and _goes_on(folder, cell):
                return folder
        name = re.sub(r"[^\w.+]+", "-", f"{cell.key.student}-{cell.key.row}-{cell.key.seed}")
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        folder = next(RunFolder(self.runs / name) for name in names if _is_made(self.runs / name))
        self._known.append((folder, cell.identity))
        return folder

    def _collect(self) -> None:
        """Take the results of processes that have ended."""
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            name, key = running.folder.path.name, running.cell.key
            if code == 0 and running.folder.is_finished:
                result = read_cell(running.folder)
                if result.identity != running.cell.identity:
                    self._failed[key] = f"{running.folder.path} has settings of another training"
                    self._say(f"{name}: failed: {self._failed[key]}")
                    continue
                self.results.add(key, result)
                minutes = (time.monotonic() - running.begin) / 60
                miou = result.figures["miou"]
                score = "- (no pixel with a label)" if miou is None else f"{100 * miou:.2f} %"
                self._say(f"{name}: val mIoU {score}, {minutes:.1f} min")
                self._note()
            else:
                with suppress(OSError):  # something is in it
                    running.folder.path.rmdir()
                self._failed[key] = _last_line(self.runs / f"{name}.log") or f"exit code {code}"
                self._say(f"{name}: failed: {self._failed[key]}")

    def _end(self) -> None:
        """Let what runs save where it stands."""
        for running in self._running:
            running.process.send_signal(signal.SIGTERM)
        for running in self._running:
            try:
                running.process.wait(END_SECONDS)
            except TimeoutExpired:
                running.process.kill()
                running.process.wait()
            if not running.folder.is_finished:
                self._say(f"{running.folder.path.name}: stopped; the same command continues it")
        finished = [running for running in self._running if running.folder.is_finished]
        for running in finished:
            self.results.add(running.cell.key, read_cell(running.folder))
        self._running = []

    def _note(self) -> None:
        self.results.save()
        self.on_result()

    def _say(self, text: str) -> None:
        done = sum(key in self.results.cells for key in self._order)
        print(f"[{done}/{len(self._order)}] {text}", file=sys.stderr, flush=True)


def _read_folders(runs: Path) -> list[tuple[RunFolder, dict[str, object]]]:
    found = []
    for folder in map(RunFolder, sorted(runs.glob("*"))):
        if not folder.config.is_file():
            continue
        try:
            settings = {**folder.read_config(), "resumed_from": folder.resumed_from}
            found.append((folder, identity_of(settings)))
        except UserError as error:
            print(f"{error}; left out", file=sys.stderr)
    return found


def _is_made(path: Path) -> bool:
    """Make a folder that was not there, so that no benchmark beside this one takes its name.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"runs: cannot write to {path}: {error.strerror}") from error
    return True


def _goes_on(folder: RunFolder, cell: Cell) -> bool:
    """Whether an interrupted run can be resumed with all settings of a cell."""
    config = replace(cell.config, terms=cell.recipe.to_dict(), data=cell.config.data.named())
    try:
        folder.check_settings(
            asdict(config),
            {**asdict(DistillConfig(run="")), "terms": cell.recipe.option_defaults},
        )
    except UserError:
        return False
    return True


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
