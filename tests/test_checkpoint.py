"""Checkpoints: a damaged one is noticed, and the one before takes its place."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aicsd.engine.checkpoint import RunState, load_checkpoint, save_checkpoint
from aicsd.errors import UserError
from aicsd.runs import RunFolder

STATES = {"distiller": {"weight": torch.arange(400.0), "bias": torch.ones(3)}, "optimizer": {}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with the checkpoints of steps 3 and 6."""
    folder = RunFolder(tmp_path / "run")
    for step in (3, 6):
        save_checkpoint(folder, RunState(step, teacher={"miou": 0.5}), STATES)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_it_is_safe_from_a_power_cut_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    last = folder.path / "checkpoints" / "last.pt"
    synced = []

    def record(handle: int) -> None:
        status = os.fstat(handle)
        synced.append((status.st_ino, status.st_size, last.exists()))

    monkeypatch.setattr(os, "fsync", record)
    save_checkpoint(folder, RunState(3, teacher={"miou": 0.5}), STATES)
    file, place = last.stat(), last.parent.stat()
    assert synced[0] == (file.st_ino, file.st_size, False)  # whole, under another name
    assert [(number, there) for number, _, there in synced[1:]] == [(place.st_ino, True)]


def test_a_checkpoint_comes_back(folder: RunFolder) -> None:
    found = load_checkpoint(folder)
    assert found is not None
    assert found.state == RunState(6, teacher={"miou": 0.5})
    assert torch.equal(found.states["distiller"]["weight"], torch.arange(400.0))
    assert found.damage is None
    # the checksum is where a ZIP archive has room for it
    assert zipfile.ZipFile(folder.checkpoint).comment.startswith(b"sha256:")
    assert torch.load(folder.checkpoint, weights_only=True)["progress"]["step"] == 6
    assert load_checkpoint(RunFolder(folder.path / "nowhere")) is None


def test_every_flipped_bit_is_noticed(folder: RunFolder) -> None:
    folder.previous.unlink()
    whole = folder.checkpoint.read_bytes()
    draw = random.Random(0)
    places = [draw.randrange(len(whole)) for _ in range(150)]
    for place in [*places, *range(len(whole) - 100, len(whole))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        folder.checkpoint.write_bytes(broken)
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(folder)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "zeros in the middle": lambda content: content[:2000] + bytes(500) + content[2500:],
    "text": lambda content: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_checkpoint_before_takes_its_place(
    folder: RunFolder, damage: Callable[[bytes], bytes]
) -> None:
    folder.checkpoint.write_bytes(damage(folder.checkpoint.read_bytes()))
    found = load_checkpoint(folder)
    assert found is not None
    assert found.state.step == 3
    assert found.damage is not None
    assert "is damaged" in found.damage
    assert found.damage.endswith("going on from previous.pt, step 3")
    assert "\n" not in found.damage
    folder.previous.write_bytes(damage(folder.previous.read_bytes()))
    with pytest.raises(UserError, match=r"last\.pt is damaged .*previous\.pt is damaged"):
        load_checkpoint(folder)


def test_killed_between_the_two_renames(folder: RunFolder) -> None:
    folder.checkpoint.unlink()
    found = load_checkpoint(folder)
    assert found is not None
    assert found.state.step == 3
    assert found.damage is not None
    assert "there is no checkpoint" in found.damage


def test_a_checkpoint_of_an_older_version_has_no_checksum(folder: RunFolder) -> None:
    torch.save({"progress": vars(RunState(7)), **STATES}, folder.checkpoint)
    found = load_checkpoint(folder)
    assert found is not None
    assert (found.state.step, found.damage) == (7, None)


@pytest.mark.parametrize("content", [torch.zeros(2), [1], {"progress": 3}, {"progress": {"x": 1}}])
def test_another_content_is_refused(folder: RunFolder, content: object) -> None:
    folder.previous.unlink()
    torch.save(content, folder.checkpoint)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(folder)


def test_a_checkpoint_of_a_later_version_is_refused(folder: RunFolder) -> None:
    folder.previous.unlink()
    torch.save({"format": 99, "progress": vars(RunState(7)), **STATES}, folder.checkpoint)
    with pytest.raises(UserError, match="format 99, and this version reads 1: update aicsd"):
        load_checkpoint(folder)


def test_nothing_is_unpickled(folder: RunFolder, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder.previous.unlink()
    torch.save({"progress": Evil()}, folder.checkpoint)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(folder)
    assert not (tmp_path / "executed").exists()
