"""The stride of the stored maps: that of the network, or 4; and caches of older versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_folder
from test_cache_file import Rulers, taught, write

from aicsd.data import open_dataset
from aicsd.errors import UserError
from aicsd.models import Segmenter
from aicsd.teacher import Teacher
from aicsd.teacher import cache as teacher_cache
from aicsd.teacher.cache import TeacherCache, WithTeacherMaps
from aicsd.teacher.cache_file import INDEX_FILE, read_index


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def test_the_index_says_a_stride_that_older_versions_do_not_know(tmp_path: Path) -> None:
    """The file at stride 4 is, byte by byte, that of older versions."""
    data = Rulers(((9, 17),))
    head = '"teacher": "t", "classes": ["a", "b", "c"], "top_k": 0, "names": ["ruler 0"], '
    for stride, cells, text in (
        (4, (3, 5), f'{{"format": 1, {head}"sizes": [[9, 17]]}}'),
        (8, (2, 3), f'{{"format": 2, {head}"sizes": [[9, 17]], "stride": 8}}'),
    ):
        folder = tmp_path / str(stride)
        key = write(folder, data, stride=stride)
        assert (folder / INDEX_FILE).read_text().splitlines()[0] == text
        index = read_index(folder)
        assert index is not None
        assert index.key == key
        found = taught(folder, data)
        maps = found.read(0).maps
        assert maps is not None
        assert (found.map_stride, maps.shape[1:]) == (stride, cells)


@pytest.mark.parametrize("stride", ["0", "3", "-8", "8.0", "true", '"8"', "null", "[8]"])
def test_an_impossible_stride_is_damage(tmp_path: Path, stride: str) -> None:
    write(tmp_path / "cache", Rulers(), stride=8)
    index = tmp_path / "cache" / INDEX_FILE
    index.write_text(index.read_text().replace('"stride": 8', f'"stride": {stride}'))
    with pytest.raises(UserError, match=r"is damaged \(index.jsonl makes no sense\)"):
        read_index(tmp_path / "cache")


def attached(root: Path, folder: Path, stride: int) -> WithTeacherMaps:
    """The cache of a network whose logits have this stride, built where it is missing."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 9, stride=stride, padding=4)
    data = open_dataset("folder", str(root), "train")
    return TeacherCache(folder, 0).attach(
        data, Teacher(Segmenter(net, data.classes), data.classes), 0
    )


def maps_of(data: WithTeacherMaps) -> torch.Tensor:
    """Maps of the first image."""
    maps = data.read(0).maps
    assert maps is not None
    return maps


@pytest.mark.parametrize(("stride", "cells"), [(1, (12, 16)), (4, (12, 16)), (16, (3, 4))])
def test_maps_have_the_stride_of_the_network_or_4(
    root: Path, tmp_path: Path, stride: int, cells: tuple[int, int]
) -> None:
    assert maps_of(attached(root, tmp_path / "cache", stride)).shape == (3, *cells)


def test_a_cache_of_an_older_version_goes_on_at_stride_4(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    with monkeypatch.context() as older:
        older.setattr(teacher_cache, "stride_of", lambda _: 4)
        maps = maps_of(attached(root, folder, 8))
        assert maps.shape == (3, 12, 16)
    index, logits = ((folder / name).read_bytes() for name in ("index.jsonl", "logits.bin"))
    found = attached(root, folder, 8)
    assert found.map_stride == 4
    assert torch.equal(maps_of(found), maps)
    (folder / "index.jsonl").write_bytes(b"".join(index.splitlines(keepends=True)[:4]))
    assert torch.equal(maps_of(attached(root, folder, 8)), maps)
    assert (folder / "index.jsonl").read_bytes() == index
    assert (folder / "logits.bin").read_bytes() == logits
