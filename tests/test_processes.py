"""Two processes: one batch norm, one end, and another number of them after a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import RunCli, write_folder
from started import SERVER, TORCHRUN, Ranks, Started, free_port, start_ranks
from timm.layers.norm_act import BatchNormAct2d
from tiny_runs import aicsd, step_difference, stopping_at, train_command, train_lines, wait_for
from torch import nn

from aicsd.engine.finite import FiniteCheck, NonFiniteLossError
from aicsd.engine.peers import EndedElsewhereError, any_process, ending_together
from aicsd.engine.sync_bn import share_statistics, shares_statistics
from aicsd.errors import UserError
from aicsd.runs import RunFolder

WORLD = 2
TWO = ("--devices", "2", "--data.batch_size", "2", "--val_every", "0")
LONG = ("--epochs", "400", "--save_every", "5")


# batch norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 3),
        BatchNormAct2d(5),
        nn.Conv2d(5, 2, 1),
        nn.BatchNorm2d(2, affine=False),
    )


def train_on(net: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two passes; the output of the last, its gradients and the statistics."""
    for _ in range(2):
        net.zero_grad()
        output = net(images)
        (output * images[:, :2, 2:-2, 2:-2]).mean().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return {"output": output.detach(), **grads, **buffers}


def all_images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 10, 9, generator=generator)
    return images * torch.tensor([1.0, 2.0, 5.0, 0.1]).view(4, 1, 1, 1)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    net = network()
    share_statistics(net)
    found = train_on(net, all_images()[2 * rank : 2 * rank + 2])
    if rank == 0:  # alone: must not wait for the other
        with torch.no_grad():
            net(all_images())
        net.eval()(all_images())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    start_ranks(work, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    whole = train_on(network(), all_images())
    assert whole.keys() == ranks[0].keys()
    for name, value in whole.items():
        parts = [found[name] for found in ranks]
        if name == "output":
            found = torch.cat(parts)
        elif "running" in name or "tracked" in name:
            assert torch.equal(parts[0], parts[1])
            found = parts[0]
        else:
            found = torch.stack(parts).mean(dim=0)  # as DDP does
        torch.testing.assert_close(found, value, rtol=2e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("asked", "batch", "world", "shared"),
    [
        (None, 3, 2, True),
        (None, 4, 2, False),
        (True, 8, 2, True),
        (False, 1, 2, False),
        (True, 2, 1, False),
    ],
)
def test_where_statistics_are_shared(
    asked: bool | None, batch: int, world: int, shared: bool
) -> None:
    assert shares_statistics(asked, batch, world) is shared


def check_on(rank: int, skip: bool, at_once: bool = True) -> FiniteCheck:
    fabric: Any = SimpleNamespace(
        world_size=WORLD,
        global_rank=rank,
        device=torch.device("cpu"),
        strategy=SimpleNamespace(precision=object()),
    )
    check = FiniteCheck(nn.Linear(1, 1), fabric, skip)
    check.at_once = at_once
    return check


def look(rank: int, folder: str) -> None:
    """The loss of the second process is not finite in step 1."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found: list[object] = []
    skips, stops, later = check_on(rank, True), check_on(rank, False), check_on(rank, False, False)
    for step in range(3):
        losses = {"loss": torch.tensor(float("nan") if (rank, step) == (1, 1) else 1.0)}
        for check in (skips, stops, later):
            check.begin()
        found += [skips.allows_backward(losses, step), later.allows_backward(losses, step)]
        try:
            found.append(stops.allows_backward(losses, step))
        except NonFiniteLossError as error:
            found.append((error.step, error.rank))
    try:
        later.require()
    except NonFiniteLossError as error:
        found.append((error.step, error.rank))
    Path(f"{folder}/{rank}.txt").write_text(repr(found))
    dist.destroy_process_group()


def test_all_processes_agree_about_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    start_ranks(look, tmp_path)
    wanted = [True, True, True, False, True, (1, 1), True, True, True, (1, 1)]
    for rank in range(WORLD):
        assert (tmp_path / f"{rank}.txt").read_text() == repr(wanted)


# the end


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("processes") / "data")


def children(pid: int) -> list[int]:
    """Other training processes below ``pid``."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def own_lines(error: str) -> list[str]:
    assert "Traceback" not in error, error
    return [line for line in error.splitlines() if line.startswith("aicsd:")]


@pytest.mark.parametrize("what", ["told", "killed"])
def test_all_processes_end_together(root: Path, tmp_path: Path, run_cli: RunCli, what: str) -> None:
    """The second is told to stop or is killed, which the first has to notice."""
    run = tmp_path / "run"
    command = train_command(root, run, *TWO, *LONG)
    with Ranks(command, tmp_path / "log", AICSD_PROCESS_TIMEOUT="12") as ranks:
        wait_for(run, 8, *ranks.processes)
        number, codes, words = {
            "told": (signal.SIGTERM, [130, 130], "stopped at step"),
            "killed": (
                signal.SIGKILL,
                [2, -signal.SIGKILL],
                "another of the 2 processes has ended; continue with",
            ),
        }[what]
        os.kill(ranks.processes[1].pid, number)
        assert ranks.wait() == codes
        (found,) = own_lines(ranks.error)
    assert words in found
    if what == "killed":
        return
    # and on with one process, which gets the images of both
    done = len(train_lines(run))
    longer = ("--devices", "1", "--data.batch_size", "3")
    code, _, error = run_cli("train", "--run", run, "--resume", *longer)
    assert code == 2
    assert "data.batch_size x devices x num_nodes is 4" in error
    assert done < 800
    alone = ("--devices", "1", "--data.batch_size", "4")
    with stopping_at(done + 5):
        code, _, error = run_cli("train", "--run", run, "--resume", *alone)
    assert code == 130, error
    assert [line["step"] for line in train_lines(run)] == list(range(1, done + 6))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The program ``aicsd`` as pip writes it."""
    program = tmp_path / "aicsd"
    program.write_text("from aicsd.cli import main\n\nmain()\n")
    return program


@pytest.mark.slow
def test_a_process_that_hangs_ends_with_the_one_that_started_it(
    root: Path, script: Path, tmp_path: Path
) -> None:
    """The second is started by Fabric, as it is when a user types the command."""
    run = tmp_path / "run"
    limit = {"AICSD_PROCESS_TIMEOUT": "2", "OMP_NUM_THREADS": "1"}
    command = train_command(root, run, *TWO, *LONG)
    with Started(command, tmp_path / "log", limit, script=script) as process:
        wait_for(run, 8, process)
        (child,) = children(process.pid)
        os.kill(child, signal.SIGSTOP)
        assert process.wait() == 2
        (found,) = own_lines(process.error)
    assert "process 1 of 2 (from 0) has not answered for 2 s; continue with" in found
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_one_image_a_process(tmp_path: Path) -> None:
    """A network that normalises over the batch, on two processes as on one with both images.

    One step: the batch norms over few pixels multiply rounding from step to step.
    """
    root = write_folder(tmp_path / "pair", {"train": 2, "val": 1})
    flags = ("--epochs", "1", "--model.dropout", "0", "--report_images", "0")
    aicsd(*train_command(root, tmp_path / "one", *flags, "--data.batch_size", "2"))
    pair = ("--devices", "2", "--data.batch_size", "1")
    command = train_command(root, tmp_path / "two", *flags, *pair)
    with Ranks(command, tmp_path / "log") as ranks:
        assert ranks.wait() == [0, 0], ranks.error
    assert step_difference(tmp_path / "one", tmp_path / "two") < 0.01


def test_one_process_becomes_two(root: Path, script: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Under torchrun, which forks the processes and is told to stop."""
    run = tmp_path / "run"
    with stopping_at(3):
        code, _, error = run_cli(*train_command(root, run, *LONG, "--val_every", "0"))
    assert code == 130, error
    done = len(train_lines(run))
    command = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1",
               "--master-port", str(free_port()), "--start-method", "fork", "--run-path", "--",
               str(script), "train", "--run", str(run), "--resume", "--devices", "2",
               "--data.batch_size", "2"]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1"}
    with Started(command, tmp_path / "log", threads, script=TORCHRUN) as process:
        wait_for(run, done + 3, process)
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
        error = process.error
    stopped = [line for line in error.splitlines() if line.startswith("aicsd:")]
    assert len(stopped) == 1, error
    assert "stopped at step" in stopped[0]
    steps = [line["step"] for line in train_lines(run)]
    assert steps == list(range(1, len(steps) + 1))
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == steps[-1]
    assert json.loads((run / "inputs.json").read_text())["epoch_batches"] == 2


WAITING = {"each other": 2, "backward": 2, "busy": 0, "steps": 0}
"""Exit codes of two processes that wait for each other, or of which one is busy, or that go on."""


def wait_in(rank: int, folder: str, what: str) -> None:
    sys.stderr = open(f"{folder}/{rank}.txt", "w")  # noqa: SIM115, it ends with the process
    os.environ["AICSD_PROCESS_TIMEOUT"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    fabric: Any = SimpleNamespace(world_size=WORLD, global_rank=rank, device=torch.device("cpu"))
    net = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
    try:
        with ending_together(RunFolder(Path(folder)), fabric):
            if what == "each other":
                dist.recv(torch.zeros(1), src=1 - rank)
            elif what == "backward" and rank == 1:  # the gradients of the other never come
                net(torch.ones(1, 1)).sum().backward()
            elif what == "backward":
                dist.recv(torch.zeros(1), src=1)
            elif what == "busy":
                product = matrix = torch.eye(512, requires_grad=True)
                end = time.monotonic() + 1.2
                while rank and time.monotonic() < end:
                    product = product @ matrix
                product.sum().backward()  # takes twice as long
                dist.barrier()
            else:
                end = time.monotonic() + 1.5
                while not any_process(time.monotonic() > end, fabric):
                    dist.barrier()
    except EndedElsewhereError:  # of the first to end, the connection is closed
        os._exit(2)
    dist.destroy_process_group()


def test_processes_that_wait_for_each_other_end(tmp_path: Path) -> None:
    pairs = {}
    for what in WAITING:  # side by side
        (tmp_path / what).mkdir()
        each = [(rank, str(tmp_path / what), what) for rank in range(WORLD)]
        pairs[what] = [SERVER.Process(target=wait_in, args=words) for words in each]
        for process in pairs[what]:
            process.start()
    for what, code in WAITING.items():
        for process in pairs[what]:
            process.join(60)
        assert [process.exitcode for process in pairs[what]] == [code] * WORLD, what
        said = [
            line
            for rank in range(WORLD)
            for line in (tmp_path / what / f"{rank}.txt").read_text().splitlines()
            if "aicsd" in line
        ]
        waited = "all 2 processes have waited for each other for 1 s: perhaps the network"
        assert len(said) == (code == 2), what
        assert all(line.startswith(f"aicsd: error: {waited}") for line in said)


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    kept = {"seed": 0, "devices": 2, "num_nodes": 1, "epochs": 1, "data": {"batch_size": 4}}
    folder.save_config(kept)
    folder.check_settings({**kept, "devices": 1, "data": {"batch_size": 8}}, {})
    with pytest.raises(UserError, match=r"data.batch_size x devices x num_nodes is 8"):
        folder.check_settings({**kept, "devices": 1}, {})
    with pytest.raises(UserError, match=r"other settings: data.batch_size was 4"):
        folder.check_settings({**kept, "data": {"batch_size": 8}}, {})
