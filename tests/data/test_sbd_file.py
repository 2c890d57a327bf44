"""The reader of SBD's masks: against SciPy on files of SciPy, and on damaged ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from aicsd.data.sbd_file import read_sbd_mask
from aicsd.errors import UserError

MASK = np.random.default_rng(0).integers(0, 21, (7, 11)).astype(np.uint8)


def content(mask: np.ndarray, compressed: bool = True, name: str = "GTcls") -> bytes:
    """A file as SBD's release has them: boundaries of each class before the mask."""
    boundaries = np.empty((3, 1), object)
    for index in range(3):
        boundaries[index, 0] = csc_matrix(mask == index) if mask.ndim == 2 else np.zeros((2, 2))
    fields = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": [1.0, 2.0]}
    file = io.BytesIO()
    savemat(file, {"other": np.arange(5), name: fields}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i1", "i4", "u8"])
@pytest.mark.parametrize("shape", [(7, 11), (1, 1), (1, 9), (300, 2), (2, 2)])
def test_as_scipy_reads_it(
    tmp_path: Path, shape: tuple[int, int], dtype: str, compressed: bool
) -> None:
    mask = np.random.default_rng(1).integers(0, 21, shape).astype(dtype)
    path = tmp_path / "x.mat"
    path.write_bytes(content(mask, compressed))
    found = read_sbd_mask(path)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, loadmat(path)["GTcls"][0, 0]["Segmentation"])
    assert np.array_equal(found, mask)


def test_of_a_machine_with_the_other_byte_order(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(kind: int, shape: tuple[int, ...], name: bytes, rest: bytes) -> bytes:
        head = element(6, struct.pack(">II", kind, 0))
        return element(
            14, head + element(5, struct.pack(f">{len(shape)}i", *shape)) + element(1, name) + rest
        )

    numbers = element(4, MASK.astype(">u2").tobytes(order="F"))
    field = matrix(11, MASK.shape, b"", numbers)
    fields = element(5, struct.pack(">i", 16)) + element(1, b"Segmentation".ljust(16, b"\0"))
    data = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + matrix(2, (1, 1), b"GTcls", fields + field)
    path = tmp_path / "x.mat"
    path.write_bytes(data)
    assert np.array_equal(read_sbd_mask(path), MASK)
    assert np.array_equal(loadmat(path)["GTcls"][0, 0]["Segmentation"], MASK)


def test_a_damaged_file_is_one_line_and_never_the_end_of_the_process(tmp_path: Path) -> None:
    """Cuts and mutations of the file, and of what its compressed part holds."""
    rng = np.random.default_rng(2)
    whole = content(MASK, compressed=False)
    path = tmp_path / "x.mat"
    messages = []
    for number in range(400):
        data = bytearray(whole)
        for place in rng.integers(124, len(data), rng.integers(1, 4)):
            data[place] = int(rng.choice([0, 1, 14, 15, 127, 128, 255, int(rng.integers(256))]))
        if number % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        if number % 2:
            packed = zlib.compress(bytes(data[128:]))
            data = bytearray(whole[:128] + struct.pack("<II", 15, len(packed)) + packed)
        path.write_bytes(data)
        try:
            mask = read_sbd_mask(path)
        except UserError as error:
            messages.append(str(error))
        else:
            assert mask.dtype == np.uint8
            assert mask.ndim == 2
    assert len(messages) > 130
    assert all(text.startswith(str(path)) and "\n" not in text for text in messages)


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(100_000_000))
    path = tmp_path / "x.mat"
    path.write_bytes(
        b"MATLAB 5.0".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed
    )
    with pytest.raises(UserError, match="cut or too large"):
        read_sbd_mask(path)
    with path.open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(UserError, match="more than 64 MB"):
        read_sbd_mask(path)


def test_other_variables_are_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    path.write_bytes(content(MASK, name="GTinst"))
    with pytest.raises(UserError, match=r"not a readable SBD mask .*the field is not there"):
        read_sbd_mask(path)
