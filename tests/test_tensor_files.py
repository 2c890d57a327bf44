"""Files of tensors with a checksum: models and the history of ICS matrices."""

from __future__ import annotations

import os
import random
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aicsd.errors import UserError
from aicsd.tensor_files import read_tensors, write_tensors
from aicsd.visualization.ics_history import ICSHistory, read_history, write_history

TENSORS = {
    "a": torch.arange(60.0),
    "b": torch.tensor(3, dtype=torch.int64),
    "c": torch.ones(2, 3).bfloat16(),
    "d": torch.tensor([True, False]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "x.safetensors", TENSORS, "note", '{"names": ["é"]}')
    return tmp_path / "x.safetensors"


def test_tensors_and_text_come_back(path: Path) -> None:
    tensors, text = read_tensors(path, "note")
    assert text == '{"names": ["é"]}'
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read_tensors(path, "other")[1] is None


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    """Damage in the header, in the text and in the tensors."""
    whole = path.read_bytes()
    draw = random.Random(0)
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        text = None  # as if the key itself were gone, which a reader of the text refuses
        with suppress(UserError):
            _, text = read_tensors(path, "note")
        assert text is None, place


def test_a_shortened_file_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for length in (0, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a readable safetensors file"):
            read_tensors(path, "note")


def test_files_of_older_versions_have_no_checksum(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "old", metadata={"note": "text"})
    assert read_tensors(tmp_path / "old", "note")[1] == "text"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077], ids=oct)
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "x", TENSORS, "note", "")
        (tmp_path / "y").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"]
    assert modes == [0o666 & ~umask] * 2


def test_a_damaged_history_is_refused_in_one_line(tmp_path: Path) -> None:
    matrix = np.eye(3)
    write_history(tmp_path, ICSHistory(["a"], {0: matrix, 12: 2 * matrix}, matrix))
    path = tmp_path / "ics.safetensors"
    found = read_history(tmp_path)
    assert found is not None
    assert list(found.steps) == [0, 12]
    np.testing.assert_array_equal(found.steps[12], 2 * matrix)
    whole = path.read_bytes()
    for place in range(8, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(UserError, match="delete it to continue without it") as refused:
            read_history(tmp_path)
        assert len(str(refused.value).splitlines()) == 1
