"""The memory of vectors by class: what it keeps, what it gives, and that all processes have one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from draws import draw
from started import start_ranks
from torch import Tensor

from aicsd.losses._memory import ClassMemory
from aicsd.losses.cross_image_memory import CrossImageMemoryLoss, cross_image_memory_loss


def vectors(*numbers: float) -> Tensor:
    """(1, P, 1) of one class."""
    return torch.tensor(numbers)[None, :, None]


def kept(memory: ClassMemory) -> list[float]:
    return memory.vectors[0, :-1, 0].tolist()


def test_the_newest_take_the_place_of_the_oldest() -> None:
    memory = ClassMemory(1, 3, 1)
    memory.add(vectors(1, 2), torch.tensor([[True, True]]))
    assert kept(memory) == [1, 2, 0]
    memory.add(vectors(3, 9, 4), torch.tensor([[True, False, True]]))
    assert kept(memory) == [4, 2, 3]
    memory.add(vectors(5, 6, 7, 8, 9), torch.ones(1, 5, dtype=torch.bool))
    assert sorted(kept(memory)) == [7, 8, 9]
    memory.add(vectors(1), torch.tensor([[False]]))
    assert sorted(kept(memory)) == [7, 8, 9]
    assert memory.vectors[0, -1] == 0


def test_only_what_was_written_is_drawn() -> None:
    memory = ClassMemory(2, 100, 1)
    keys, known = memory.sample(5)
    assert not known.any()
    memory.add(
        torch.tensor([[[3.0], [4.0]], [[0.0], [0.0]]]), torch.tensor([[True, True], [False, False]])
    )
    keys, known = memory.sample(200)
    assert known.tolist() == [True] * 200 + [False] * 200
    assert set(keys[:200, 0].tolist()) == {3.0, 4.0}


def test_without_a_key_nothing_is_compared() -> None:
    student = draw((2, 3, 4, 4), 1).requires_grad_()
    keys = draw((5, 3), 2)
    value = cross_image_memory_loss(
        student, draw((2, 3, 4, 4), 3), keys, torch.zeros(5, dtype=torch.bool)
    )
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    assert not gradient.any()


def test_evaluation_leaves_the_memory_as_it_is() -> None:
    loss = CrossImageMemoryLoss(teacher_channels=3, num_classes=4).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    assert loss(draw((2, 3, 4, 4), 1).float(), draw((2, 3, 4, 4), 2).float(), mask) == 0
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def work(rank: int, folder: str) -> None:
    """Two steps of one process, whose memory goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    loss = CrossImageMemoryLoss(teacher_channels=3, num_classes=2)
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        mask = torch.full((1, 2, 2), rank)  # each process has seen one class only
        loss(draw((1, 3, 2, 2), 1).float(), draw((1, 3, 2, 2), 2 + rank + step).float(), mask)
    torch.save(loss.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_all_processes_have_one_memory(tmp_path: Path) -> None:
    start_ranks(work, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["pixel_memory.written"].tolist() == [8, 8]
    assert first["region_memory.written"].tolist() == [2, 2]
