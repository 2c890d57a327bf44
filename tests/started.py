"""Trainings in processes of their own, forked from a server that has everything imported.

A start of Python costs seconds, a fork of the server nothing; pids, signals, exit codes, standard
output and standard error are real. What the start or the end of the interpreter is part of, and
what Fabric or torchrun starts, is for ``subprocess``.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing import get_all_start_methods, get_context, set_start_method
from pathlib import Path
from typing import Any

import torch.distributed
from torch.multiprocessing.spawn import start_processes

TIMEOUT = 120
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(
    ["aicsd.cli.fit", "aicsd.engine.run", "matplotlib.figure", "torch.utils.tensorboard"]
)
TORCHRUN = Path(torch.distributed.__file__).with_name("run.py")
CLONE_NEWNET = 0x40000000
"""Flag of ``sched.h`` for a network namespace."""


class Started:
    """``aicsd`` in a process of its own, which ends with the ``with`` block.

    Args:
        arguments: of the command line.
        place: new folder for what it prints.
        environment: variables, in addition to those of this process.
        script: file of a program that is run in place of ``aicsd``.
        folder: that it works in.
        host: network namespace.
        deaf: nothing takes what it writes to standard error.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        place: Path,
        environment: Mapping[str, str] | None = None,
        script: Path | None = None,
        folder: Path | None = None,
        host: str | None = None,
        deaf: bool = False,
    ) -> None:
        place.mkdir(parents=True)
        self._place = place
        # variables are set while the tests run, and the server has those of its start
        variables = {**os.environ, **(environment or {})}
        output = None if deaf else place / "error.txt"
        streams = (place / "output.txt", output)
        words = (list(arguments), script, folder or Path.cwd(), variables, host, streams)
        self.process = SERVER.Process(target=_call, args=words)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code, or minus the number of the signal that ended it."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.error}"
        return self.process.exitcode

    @property
    def output(self) -> str:
        return (self._place / "output.txt").read_text(encoding="utf-8")

    @property
    def error(self) -> str:
        return (self._place / "error.txt").read_text(encoding="utf-8")


class Ranks(ExitStack):
    """Processes that train together, each with the variables that torchrun gives it."""

    def __init__(
        self,
        arguments: Sequence[str],
        place: Path,
        hosts: Sequence[str | None] = (None, None),
        **environment: str,
    ) -> None:
        super().__init__()
        self.processes = []
        port = free_port()
        for rank, host in enumerate(hosts):
            variables = {**environment, **rank_variables(rank, hosts, port)}
            process = Started(arguments, place / str(rank), variables, host=host)
            self.processes.append(self.enter_context(process))

    def wait(self) -> list[int]:
        return [process.wait() for process in self.processes]

    @property
    def error(self) -> str:
        """What they wrote to standard error, one after the other."""
        return "".join(process.error for process in self.processes)


def rank_variables(rank: int, hosts: Sequence[str | None], port: int) -> dict[str, str]:
    """What torchrun gives a process; tests/test_two_hosts.py compares."""
    node = rank if hosts[0] is not None else 0
    address = "127.0.0.1" if hosts[0] is None else "10.213.0.1"
    found = {
        "RANK": rank,
        "LOCAL_RANK": rank - node,
        "GROUP_RANK": node,
        "WORLD_SIZE": len(hosts),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "none",
    }
    return {name: str(value) for name, value in found.items()}


def start_ranks(work: Callable[[int, str], None], folder: Path) -> None:
    """``work(rank, folder)`` in two processes, which have ended well when this returns.

    They are not forked from the process of the tests: autograd's threads there, if another test
    has started them, would refuse a backward pass here.
    """
    is_there = "forkserver" in get_all_start_methods()
    start_processes(
        work, (str(folder),), nprocs=2, start_method="forkserver" if is_there else "spawn"
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _call(
    arguments: list[str],
    script: Path | None,
    folder: Path,
    variables: dict[str, str],
    host: str | None,
    streams: tuple[Path, Path | None],
) -> None:
    import cv2

    from aicsd.cli import main

    if host is not None:
        _enter(host)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    os.fsync = _no_waiting
    for number, path in enumerate(streams, start=1):
        os.dup2(_pipe_without_reader() if path is None else _file(path), number)
    sys.argv = [str(script or "aicsd"), *arguments]
    cv2.setNumThreads(0)
    set_start_method(None, force=True)  # that of a start by hand: the server has set its own
    if script is None:
        main(arguments)
    else:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


def _no_waiting(fd: object) -> None:
    """In place of fsync, which only a power cut makes use of."""


def _file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT)


def _pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _enter(host: str) -> None:
    with open(f"/run/netns/{host}", "rb") as namespace:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
