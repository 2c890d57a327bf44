"""The stored maps and their crops: geometry against the images themselves, mass, damage."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aicsd.data.augment import View, augment, crop_maps, draw_view
from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import train_loader
from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.data.wrappers import Subset
from aicsd.errors import UserError
from aicsd.teacher.cache import WithTeacherMaps
from aicsd.teacher.cache_file import (
    INDEX_FILE,
    LOGITS_FILE,
    CacheKey,
    Checksums,
    Index,
    checksum,
    decode,
    encode,
    first_line,
    last_line,
    map_size,
    read_index,
    require_sound,
)
from aicsd.types import Batch

SIZES = ((120, 161), (64, 48), (97, 130))
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Rulers(SegDataset):
    """Every pixel shows where it is: row in red, column in green."""

    classes = Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))

    def __init__(self, sizes: tuple[tuple[int, int], ...] = SIZES, blue: int = 0) -> None:
        self.sizes = sizes
        self.names = [f"ruler {number}" for number in range(len(sizes))]
        self.blue = blue

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, index: int) -> Sample:
        height, width = self.sizes[index]
        y, x = np.mgrid[:height, :width]
        image = np.stack([y, x, np.full_like(x, self.blue)], axis=-1).astype(np.uint8)
        return Sample(image, np.full((height, width), index, np.uint8))


def position_maps(size: tuple[int, int], stride: int = 4) -> Tensor:
    """(3, h, w): a teacher whose logits are the row, the column and their difference."""
    y, x = grid(size, stride)
    return torch.from_numpy(np.stack([y, x, y - x]))


def grid(size: tuple[int, int], stride: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions of the cells of a map: from the first pixel to the last."""
    (height, width), (h, w) = size, map_size(size, stride)
    rows = [cell * (height - 1) / (h - 1) for cell in range(h)]
    columns = [cell * (width - 1) / (w - 1) for cell in range(w)]
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return y, x


def write(folder: Path, data: Rulers, top_k: int = 0, stride: int = 4) -> CacheKey:
    """A complete cache of position maps."""
    contents = CacheKey("t", data.classes.names, top_k, tuple(data.names), data.sizes, stride)
    maps = [encode(position_maps(size, stride) / 16, top_k) for size in data.sizes]
    folder.mkdir()
    (folder / LOGITS_FILE).write_bytes(b"".join(maps))
    checks = [
        Checksums(checksum(data.read(n).image), zlib.crc32(stored)) for n, stored in enumerate(maps)
    ]
    text = first_line(contents) + "".join(json.dumps(check) + "\n" for check in checks)
    (folder / INDEX_FILE).write_text(text + last_line(text.encode()))
    return contents


def taught(folder: Path, data: Rulers | Subset) -> WithTeacherMaps:
    index = read_index(folder)
    assert index is not None
    assert index.complete
    require_sound(folder, index)
    return WithTeacherMaps(data, folder, index)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    assert one is not None
    assert other is not None
    return torch.equal(one, other)


def maps_of(data: WithTeacherMaps, index: int) -> Tensor:
    maps = data.read(index).maps
    assert maps is not None
    return maps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "cache", Rulers())
    return tmp_path / "cache"


def load(
    data: SegDataset, augmentation: AugmentConfig, workers: int = 0, start: int = 0
) -> list[Batch]:
    config = DataConfig(batch_size=3, workers=workers, augment=augmentation)
    return list(train_loader(data, config, TrainBatches(3, 3, 7, start, 12)))


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.3, 2.0)])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_logits_tell_the_position_that_the_crop_shows(
    tmp_path: Path, stride: int, scales: tuple[float, float], flip: float
) -> None:
    """33 = 4 x 8 + 1 pixels: every fourth, eighth or sixteenth is where a cell is."""
    write(tmp_path / "cache", Rulers(), stride=stride)
    config = AugmentConfig(33, 0, *scales, flip, blur=0.0)
    compared, padded = 0, 0
    cells = 32 // stride + 1
    for batch in load(taught(tmp_path / "cache", Rulers()), config):
        assert batch.teacher_logits is not None
        assert batch.teacher_logits.shape == (3, 3, cells, cells)
        shown = batch.image[:, :2, ::stride, ::stride].float()
        valid = batch.valid[:, None, ::stride, ::stride].expand(-1, 2, -1, -1)
        told = batch.teacher_logits[:, :2] * 16
        # half a grey level, float16, and a quarter of a pixel that enlarging lacks at the border
        assert (told - shown)[valid].abs().max() < 0.5 + 0.07 + 0.25
        compared, padded = compared + int(valid.sum()), padded + int((~valid).sum())
    assert compared > 2000 * (cells / 9) ** 2
    assert (padded > 0) == (scales[0] < 1)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("view", "side"),
    [
        (View(0, 0, 120, 160, 120, 120, False), 120),
        (View(10, 33, 60, 60, 60, 60, False), 60),  # scale 1
        (View(7, 20, 30, 30, 60, 60, False), 60),  # 2
        (View(3, 11, 100, 100, 60, 60, False), 60),  # 0.6
        (View(0, 0, 120, 160, 36, 48, False), 64),  # 0.3, padded below and on the right
        (View(5, 0, 64, 37, 64, 37, False), 64),
    ],
)
def test_logits_that_are_a_smooth_function_of_the_place(
    view: View, side: int, flipped: bool
) -> None:
    size = (120, 160)

    def field(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(y / 15), np.cos(x / 19), np.sin((x + 2 * y) / 40)])

    got = crop_maps(
        torch.from_numpy(field(*grid(size))).float(), size, view._replace(flipped=flipped), side
    ).numpy()
    cells = math.ceil(side / 4)
    assert got.shape == (3, cells, cells)
    for row in range(cells):
        for column in range(cells):
            below, right = (cell * (side - 1) / (cells - 1) for cell in (row, column))
            if flipped:
                right = side - 1 - right
            # in pixels that are squares, as resizing has it
            y = view.top + (below + 0.5) / (view.content_rows / view.rows) - 0.5
            x = view.left + (right + 0.5) / (view.content_columns / view.columns) - 0.5
            valid = below <= view.content_rows - 1 and right <= view.content_columns - 1
            y, x = np.clip(y, 0, 119), np.clip(x, 0, 159)
            if valid:
                # a bilinear map of stride 4 is off by at most 4^2 / 8 of the second derivative
                assert got[:, row, column] == pytest.approx(field(y, x), abs=2 / 15**2 + 1e-3)


def test_a_view_is_the_one_that_augment_draws() -> None:
    data = Rulers()
    config = AugmentConfig(32, 0, 0.3, 2.0, 0.5, 0.0)
    flips = 0
    for seed in range(40):
        view = draw_view(120, 161, np.random.default_rng(seed), config)
        crop = augment(data.read(0), np.random.default_rng(seed), config)
        rows, columns = (int(crop.valid.any(axis=axis).sum()) for axis in (1, 0))
        assert (rows, columns) == (view.content_rows, view.content_columns)
        shown = crop.image[:, ::-1] if view.flipped else crop.image
        content = shown[:rows, :columns, :2].astype(float)
        step = view.rows / view.content_rows
        assert content[0, 0] == pytest.approx([view.top, view.left], abs=step / 2 + 0.5)
        last = [view.top + view.rows - 1, view.left + view.columns - 1]
        assert content[-1, -1] == pytest.approx(last, abs=step / 2 + 0.5)
        flips += view.flipped
    assert 10 < flips < 30


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_restarts_do_not_change_the_stream(folder: Path, workers: int) -> None:
    data, config = taught(folder, Rulers()), AugmentConfig(40, jitter=0.3)
    alone = load(data, config)
    for start in (0, 5):
        for one, other in zip(alone[start:], load(data, config, workers, start), strict=True):
            assert all(map(same, one, other))


def test_the_cache_leaves_the_images_alone(folder: Path) -> None:
    config = AugmentConfig(40, jitter=0.3)
    with_logits, without = load(taught(folder, Rulers()), config), load(Rulers(), config)
    for one, other in zip(with_logits, without, strict=True):
        assert all(map(same, one[:3], other[:3]))
        assert other.teacher_logits is None


def test_a_batch_moves_with_its_logits(folder: Path) -> None:
    (batch, *_) = load(taught(folder, Rulers()), AugmentConfig(40))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved if tensor is not None} == {"meta"}
    assert batch._replace(teacher_logits=None).to("cpu").teacher_logits is None


def test_all_logits_come_back_in_half_precision() -> None:
    logits = torch.randn(5, 3, 4) * 8
    stored = np.frombuffer(encode(logits, 0), np.uint8).copy()
    assert torch.equal(decode(stored, 5, (3, 4), 0), logits.half().float())


@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_top_k_keeps_the_largest_and_the_mass_of_the_rest(top_k: int) -> None:
    torch.manual_seed(top_k)
    logits = torch.randn(7, 5, 6) * 3
    contents = CacheKey("t", tuple("abcdefg"), top_k, ("x",), ((20, 24),))
    encoded = encode(logits, top_k)
    assert len(encoded) == contents.bytes_of(0) == 30 * (3 * top_k + 2)
    found = decode(np.frombuffer(encoded, np.uint8).copy(), 7, (5, 6), top_k).double().numpy()
    for y in range(5):
        for x in range(6):
            true, got = logits[:, y, x].double().numpy(), found[:, y, x]
            order = np.argsort(-true)
            kept, rest = order[:top_k], order[top_k:]
            assert got[kept] == pytest.approx(true[kept], abs=4e-3)
            assert len(set(got[rest])) == 1
            assert np.exp(got[rest]).sum() == pytest.approx(np.exp(true[rest]).sum(), rel=4e-3)
            p, q = np.exp(true) / np.exp(true).sum(), np.exp(got) / np.exp(got).sum()
            assert q[kept] == pytest.approx(p[kept], abs=4e-3)
            assert q[rest] == pytest.approx(p[rest].mean(), abs=4e-3)


def test_logits_of_no_half_precision_are_refused() -> None:
    for value in (1e5, float("nan")):
        with pytest.raises(UserError, match=r"float16.*leave teacher_cache out"):
            encode(torch.full((3, 2, 2), value), 0)


@pytest.mark.parametrize("top_k", [-1, 3, 12])
def test_impossible_top_k_is_refused(top_k: int) -> None:
    with pytest.raises(UserError, match=rf"top_k is {top_k}; with 3 classes it is 1 to 2, or 0"):
        CacheKey("t", ("a", "b", "c"), top_k, (), ())


def test_a_cache_serves_a_part_of_its_images(folder: Path) -> None:
    whole, part = taught(folder, Rulers()), taught(folder, Subset(Rulers(), 2))
    assert part.names == ["ruler 0", "ruler 1"]
    assert torch.equal(maps_of(part, 1), maps_of(whole, 1))
    assert part.size(1) == (64, 48)


def test_maps_lie_one_after_another(tmp_path: Path) -> None:
    for top_k in (0, 2):
        write(tmp_path / str(top_k), Rulers(), top_k)
        data = taught(tmp_path / str(top_k), Rulers())
        for number, size in enumerate(SIZES):
            expected = position_maps(size).float() / 16
            kept = maps_of(data, number).topk(top_k or 3, dim=0).values
            # of the largest, 10, a float16 holds 2^-8 of it
            assert torch.allclose(kept, expected.topk(top_k or 3, dim=0).values, atol=8e-3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Rulers(blue=1), "its 'ruler 0' was another image"),
        (Rulers(((120, 160), *SIZES[1:])), "its 'ruler 0' was another image"),
        (Rulers((*SIZES, (32, 32), (32, 32))), "does not hold 'ruler 3' and 1 more images"),
    ],
)
def test_other_data_is_refused(folder: Path, data: Rulers, words: str) -> None:
    with pytest.raises(UserError) as caught:
        taught(folder, data)
    assert words in str(caught.value)
    assert str(caught.value).endswith("choose another folder, or delete this one")


def test_an_image_that_changed_is_refused_when_it_is_read(folder: Path) -> None:
    data = Rulers()
    cached = taught(folder, data)
    data.sizes = (SIZES[0], (64, 49), SIZES[2])
    with pytest.raises(UserError, match="'ruler 1' was another image"):
        load(cached, AugmentConfig(40), workers=1)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip_byte(f / LOGITS_FILE, 0), "the map of 'ruler 0' is not what was written"),
        (lambda f: flip_byte(f / LOGITS_FILE, -1), "the map of 'ruler 2' is not what was written"),
        (
            lambda f: (f / LOGITS_FILE).write_bytes((f / LOGITS_FILE).read_bytes()[:-1]),
            "has 13481 bytes instead of 13482",
        ),
        (lambda f: (f / LOGITS_FILE).unlink(), "has 0 bytes instead of"),
        (lambda f: flip_byte(f / INDEX_FILE, 26), "index.jsonl is not what was written"),
        (lambda f: flip_byte(f / INDEX_FILE, 0), "index.jsonl makes no sense"),
    ],
)
def test_damage_is_refused(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    with pytest.raises(UserError) as caught:
        taught(folder, Rulers())
    message = str(caught.value)
    assert message.startswith(f"teacher_cache {folder} is damaged (")
    assert words in message
    assert message.endswith("): delete it to build it again")
    assert "\n" not in message


def test_any_flipped_bit_of_the_index_is_refused(folder: Path) -> None:
    whole = (folder / INDEX_FILE).read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        (folder / INDEX_FILE).write_bytes(content)
        try:
            index = read_index(folder)
        except UserError:
            continue
        assert index is None or not index.complete, place


def test_an_index_cut_anywhere_is_no_complete_one(folder: Path) -> None:
    whole = (folder / INDEX_FILE).read_bytes()
    complete: list[Index | None] = []
    for length in range(len(whole)):
        (folder / INDEX_FILE).write_bytes(whole[:length])
        index = read_index(folder)
        assert index is None or not index.complete
        complete.append(index)
    assert {len(index.checks) for index in complete if index is not None} == {0, 1, 2, 3}


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds something else; name a new folder"):
        read_index(tmp_path)


def test_a_later_format_is_refused(folder: Path) -> None:
    text = (folder / INDEX_FILE).read_text().replace('"format": 1', '"format": 3')
    (folder / INDEX_FILE).write_text(text)
    with pytest.raises(UserError, match="has format 3; this version reads 1 and 2"):
        read_index(folder)
