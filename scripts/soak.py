"""Kill trainings at random moments, resume them, and compare with a run that was not disturbed.

    python scripts/soak.py --kills 200 [--seed 0] [--folder DIR]

Each training is a distillation with a teacher cache on a few digits. It is killed (SIGKILL, SIGTERM
or SIGINT) in a phase chosen at random (start, building of the cache, training step, validation,
checkpoint, report), a random time after the phase begins, and resumed, up to six times. Afterwards
its weights, best model, metrics, log lines, TensorBoard points, ICS matrices and cache must be
those of the undisturbed run, no other file may be left in its folder, and no process.

Trainings are forked from this process, which has everything imported: a kill costs a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils import tensorboard  # noqa: F401

import aicsd
import aicsd.engine.run as engine
from aicsd.engine import record, run_report
from aicsd.engine.stop import Interrupted
from aicsd.teacher.cache import TeacherCache

PHASES = ("start", "cache", "training", "validation", "checkpoint", "report")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST = {
    "start": 0.4,
    "cache": 0.05,
    "training": 0.6,
    "validation": 0.05,
    "checkpoint": 0.005,
    "report": 0.4,
}
"""Seconds after the beginning of a phase within which it is killed."""
MOST = 6
"""Kills of one training."""
HANGS = 120.0
"""Seconds that a training may take at most."""
NETWORK: dict[str, Any] = {
    "backbone": "test_resnet",
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
}
NOISE = {"images_per_second", "data_wait", "seconds"}
"""Keys that no two runs have alike."""
phase = multiprocessing.Value("i", 0, lock=False)


class Kill(NamedTuple):
    """One kill, and how the training ended by it."""

    phase: str
    number: int
    code: int


def settings(run: Path, workers: int) -> dict[str, Any]:
    """Arguments of the distillation."""
    data = {
        "name": "digits",
        "options": {"size": 32, "scenes": 12},
        "batch_size": 4,
        "workers": workers,
        "augment": {"crop": 32},
    }
    return {
        "data": data,
        "epochs": 3,
        "save_every": 2,
        "log_every": 1,
        "accelerator": "cpu",
        "run": run,
        "teacher_cache": str(run.parent / f"{run.name}_cache"),
    }


def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, with its phase known to the parent while it runs."""

    def call(*arguments: Any, **named: Any) -> Any:
        before, phase.value = phase.value, PHASES.index(name)
        try:
            return function(*arguments, **named)
        finally:
            phase.value = before

    return call


def train(teacher: Path, run: Path, workers: int) -> None:
    """Start or continue the training in a process, and exit as the CLI does."""
    os.setsid()
    (run.parent / f"{run.name}.out").touch()
    output = os.open(run.parent / f"{run.name}.out", os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for module, name, of in (
        (record, "evaluate", "validation"),
        (record, "save_checkpoint", "checkpoint"),
        (TeacherCache, "attach", "cache"),
        (engine, "fit", "training"),
        (run_report, "write_report", "report"),
    ):
        setattr(module, name, told(of, getattr(module, name)))
    resume = (run / "config.yaml").is_file()
    try:
        aicsd.distill(teacher, NETWORK, resume=resume, **settings(run, workers))
    except Interrupted as stop:
        print(f"aicsd: {stop}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        print(f"{type(error).__name__} {error}", file=sys.stderr)
        sys.exit(1)


def start(teacher: Path, run: Path, workers: int) -> multiprocessing.process.BaseProcess:
    phase.value = 0
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(teacher, run, workers)
    )
    process.start()
    return process


def kill_in(process: multiprocessing.process.BaseProcess, wanted: str, draw: random.Random) -> Kill:
    """Kill a training in a phase; one that does not reach it ends by itself."""
    assert process.pid is not None
    number = draw.choice(SIGNALS)
    end = time.monotonic() + HANGS
    while PHASES[phase.value] != wanted and process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)
    process.join(draw.random() * LONGEST[wanted])
    at = PHASES[phase.value]
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(HANGS)
    if process.is_alive():
        raise SystemExit(f"{at}: still alive {HANGS:.0f} s after signal {number}")
    return Kill(at, int(number), process.exitcode or 0)


def lines(path: Path) -> list[dict[str, Any]]:
    """The log of a run without what differs between any two."""
    text = path.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in NOISE} for line in found]


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number in TensorBoard."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in NOISE
    }


def same_tensors(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def files(folder: Path) -> set[str]:
    """Files and folders of a run, but for those whose number or name is of no account."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.startswith("events.out")}


def differences(run: Path, reference: Path) -> Iterator[str]:
    """Differences between a disturbed run and the reference."""
    for name in ("model", "best", "ics", "image_counts"):
        if not same_tensors(run / f"{name}.safetensors", reference / f"{name}.safetensors"):
            yield f"{name}.safetensors"
    results = [json.loads((each / "metrics.json").read_text()) for each in (run, reference)]
    if any(results[0][key] != results[1][key] for key in results[1].keys() - NOISE):
        yield "metrics.json"
    if lines(run / "metrics.jsonl") != lines(reference / "metrics.jsonl"):
        yield "metrics.jsonl"
    if points(run) != points(reference):
        yield "TensorBoard"
    if files(run) != files(reference):
        yield f"files {sorted(files(run) ^ files(reference))}"
    caches = [each.parent / f"{each.name}_cache" for each in (run, reference)]
    if {p.name for p in caches[0].iterdir()} != {p.name for p in caches[1].iterdir()}:
        yield f"files of the cache {sorted(p.name for p in caches[0].iterdir())}"
    for path in caches[1].iterdir():
        if path.is_file() and path.read_bytes() != (caches[0] / path.name).read_bytes():
            yield f"cache/{path.name}"


def left_processes(groups: set[int]) -> list[int]:
    """Living processes of the sessions of killed trainings."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z" and int(fields[3]) in groups:
                    found.append(int(entry.name))
    return found


def soak(folder: Path, kills: int, seed: int) -> int:
    """Kill and compare until enough is done; returns the number of differences."""
    draw = random.Random(seed)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    teacher, reference = folder / "teacher", folder / "reference"
    first = multiprocessing.get_context("fork").Process(target=make_teacher, args=(teacher,))
    first.start()
    first.join()
    undisturbed = start(teacher, reference, 0)
    undisturbed.join()
    if undisturbed.exitcode:
        raise SystemExit((folder / "reference.out").read_text())
    done: list[Kill] = []
    wrong = runs = 0
    while sum(kill.code != 0 for kill in done) < kills:
        runs += 1
        run, workers = folder / f"run{runs}", draw.choice((0, 0, 1))
        groups: set[int] = set()
        here: list[Kill] = []
        for _ in range(draw.randint(1, MOST)):
            process = start(teacher, run, workers)
            assert process.pid is not None
            groups.add(process.pid)
            here.append(kill_in(process, draw.choice(PHASES), draw))
            if here[-1].code == 0:
                break  # it was over before the signal
        last = start(teacher, run, workers)
        last.join(HANGS)
        problems = [] if last.exitcode == 0 else [f"ended with {last.exitcode}"]
        problems += [f"{kill}" for kill in here if kill.code == 1]
        if not last.exitcode:
            problems += differences(run, reference)
        time.sleep(0.2)
        if left_processes(groups):
            time.sleep(6.0)  # a loader whose training is gone ends within 5 s
            problems += [f"process {pid} is left" for pid in left_processes(groups)]
        done += here
        for problem in problems:
            wrong += 1
            output = (folder / f"run{runs}.out").read_text().splitlines()[-4:]
            print(f"run {runs} (seed {seed}, {here}): {problem} | {output}", flush=True)
        if not problems:
            shutil.rmtree(run)
            shutil.rmtree(folder / f"run{runs}_cache")
    summary(done, runs, wrong)
    return wrong


def make_teacher(path: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        data = {
            "name": "digits",
            "options": {"size": 32, "scenes": 8},
            "batch_size": 4,
            "workers": 0,
            "augment": {"crop": 32},
        }
        aicsd.train(NETWORK, data, path, epochs=1, accelerator="cpu", logger="none", val_every=0)


def summary(kills: list[Kill], runs: int, wrong: int) -> None:
    """Description of the disturbance; a training that ended before the signal was not killed."""
    alive = [kill for kill in kills if kill.code != 0]
    print(f"{len(alive)} kills of {runs} trainings; {wrong} differences")
    for name, count in Counter(kill.phase for kill in alive).most_common():
        print(f"  in {name}: {count}")
    for number, count in Counter(kill.number for kill in alive).most_common():
        print(f"  by {signal.Signals(number).name}: {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description="kill trainings and compare what is left")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; without it a temporary one")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wrong = soak(folder, options.kills, options.seed)
    print(f"{time.monotonic() - begin:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
