"""Two processes that share a batch train as one that has it all."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from contract_cases import Case, Inputs, cases, on_both
from started import start_ranks
from test_contract import ROWS
from torch import Tensor

WORLD = 2
BATCH = 4


def all_cases() -> list[Case]:
    """Every loss with every variant that a row tests, but for declared exceptions."""
    return [case for case in cases(ROWS) if case.exception("ranks") is None]


def shared_inputs(case: Case) -> Inputs:
    """A batch whose first half has fewer valid and labelled pixels than its second."""
    inputs = case.inputs((BATCH, *case.row.shape[1:]))
    if inputs.get("valid") is not None:
        inputs["valid"][0, 2:] = False
    if "mask" in inputs:
        inputs["mask"][0, 1:] = 255
    return inputs


def part(inputs: Inputs, rank: int) -> Inputs:
    """The images of one process."""
    mine = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    halves = on_both(lambda maps: maps[mine], inputs)
    return {
        key: value[mine]
        if isinstance(value, Tensor) and key not in ("student", "teacher")
        else value
        for key, value in halves.items()
    }


def work(rank: int, folder: str) -> None:
    """Values and gradients of one process, into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found = [case.gradient(part(shared_inputs(case), rank)) for case in all_cases()]
    with torch.no_grad():  # only one of them: must not wait for the other
        if rank == 0:
            case = all_cases()[0]
            case.value(part(shared_inputs(case), rank))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    start_ranks(work, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for number, case in enumerate(all_cases()):
        value, gradient = case.gradient(shared_inputs(case))
        parts = [found[number] for found in ranks]
        mean = torch.stack([loss for loss, _ in parts]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-13, msg=str(case))
        whole = gradient.view(max(1, len(case.row.maps)), BATCH, -1)
        shared = torch.cat(
            [found.view(len(whole), BATCH // WORLD, -1) for _, found in parts], dim=1
        )
        torch.testing.assert_close(shared / WORLD, whole, rtol=1e-9, atol=1e-13, msg=str(case))
