"""Two machines: network namespaces with a cable between them, and one disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import write_folder
from started import TORCHRUN, Ranks, Started, rank_variables
from tiny_runs import aicsd, step_difference, train_command, train_lines, wait_for

CABLE = {"GLOO_SOCKET_IFNAME": "cable"}
FLAGS = ("--val_every", "0", "--model.dropout", "0", "--report_images", "0")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def end_all(host: str) -> None:
    """Kill every process of a host: those of torchrun are in groups of their own."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout
    for pid in found.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Two hosts, 10.213.0.1 and 10.213.0.2, each with a device ``cable``."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("making network namespaces needs the rights")
    names = (f"aicsd-{os.getpid()}-0", f"aicsd-{os.getpid()}-1")
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth",
               "peer", "name", "cable", "netns", names[1])  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"making network namespaces needs the rights: {error.stderr}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.213.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            end_all(name)
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hosts") / "data")


def command_of(root: Path, run: Path, *more: str) -> list[str]:
    """A training with one process on each host."""
    return train_command(root, run, *FLAGS, "--data.batch_size", "1", "--num_nodes", "2", *more)


def own_lines(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("aicsd:")]


def test_a_step_of_two_hosts_is_that_of_one_process(hosts: tuple[str, str], tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pair", {"train": 2, "val": 1})
    command = command_of(root, tmp_path / "two", "--epochs", "1")
    with Ranks(command, tmp_path / "log", hosts, **CABLE) as ranks:
        assert ranks.wait() == [0, 0], ranks.error
    one = train_command(root, tmp_path / "one", *FLAGS, "--data.batch_size", "2", "--epochs", "1")
    aicsd(*one)
    assert step_difference(tmp_path / "one", tmp_path / "two") < 0.01


def test_torchrun_sets_the_variables_of_these_processes(
    hosts: tuple[str, str], tmp_path: Path
) -> None:
    """By the command of docs/distributed.md, with a program that prints its variables."""
    words = ["--nnodes", "2", "--master-addr", "10.213.0.1", "--master-port", "29513",
             "--nproc-per-node", "1", "--no-python", "env"]  # fmt: skip
    with ExitStack() as stack:
        pair = []
        for rank, host in enumerate(hosts):
            command = ["--node-rank", str(rank), *words]
            process = Started(command, tmp_path / host, CABLE, TORCHRUN, host=host)
            pair.append(stack.enter_context(process))
        for rank, process in enumerate(pair):
            assert process.wait() == 0, process.error
            found = dict(line.split("=", 1) for line in process.output.splitlines())
            wanted = rank_variables(rank, hosts, port=29513)
            assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.slow
def test_a_network_that_is_down_and_a_host_that_is_gone(
    hosts: tuple[str, str], root: Path, tmp_path: Path
) -> None:
    """Each ends the run with one line; a resume in between repeats the lost steps exactly."""
    run = tmp_path / "run"
    command = command_of(root, run, "--epochs", "400", "--save_every", "2")
    limit = {"AICSD_PROCESS_TIMEOUT": "2"}
    with Ranks(command, tmp_path / "cut", hosts, **CABLE, **limit) as ranks:
        wait_for(run, 4, *ranks.processes)
        try:
            ip("-n", hosts[1], "link", "set", "cable", "down")
            begin = time.monotonic()
            assert ranks.wait() == [2, 2]
            print(f"both hosts ended {time.monotonic() - begin:.1f} s after the network")
        finally:
            ip("-n", hosts[1], "link", "set", "cable", "up")
        # though both went on counting on the disk that they share
        (line,) = own_lines(ranks.error)
    assert "all 2 processes have waited for each other for 2 s: perhaps the network" in line
    losses = [line["loss"] for line in train_lines(run)]
    (run / "checkpoints" / "last.pt").unlink()  # the one before is 2 steps or more behind

    command = ["train", "--run", str(run), "--resume"]
    with Ranks(command, tmp_path / "gone", hosts, **CABLE, **limit) as ranks:
        wait_for(run, len(losses) + 2, *ranks.processes)
        end_all(hosts[1])
        assert ranks.wait() == [2, -signal.SIGKILL]
        (line,) = own_lines(ranks.error)
    assert "another of the 2 processes has ended; continue with" in line
    assert [line["loss"] for line in train_lines(run)][: len(losses)] == losses
    assert (run / "checkpoints" / "last.pt").is_file()
