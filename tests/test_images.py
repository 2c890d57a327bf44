"""Image and mask files: one picture in every format, and what is no image at all."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from aicsd.errors import UserError
from aicsd.images import (
    MAX_PIXELS,
    decode_image,
    image_size,
    list_images,
    read_colors,
    read_image,
    read_mask,
    read_values,
)

Y, X = np.mgrid[:40, :60]
RGB = np.stack([X * 4, Y * 6, (X + Y) * 2], axis=-1).astype(np.uint8)
GREY = (X * 4).astype(np.uint8)
ALPHA = np.where(X < 30, 255, 40).astype(np.uint8)
ALPHA[:10] = 0
WIDE = RGB.astype(np.uint16) * 257
NOISE = np.random.default_rng(0).integers(0, 256, (100, 60, 3), dtype=np.uint8)
MASK = ((X + Y) % 4).astype(np.uint8)


def encoded(array: np.ndarray, file_format: str, palette: bool = False, **options: Any) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(array)
    if palette:
        picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10, 10, 10, 200])
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def by_opencv(array: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, array[..., [2, 1, 0, *range(3, array.shape[-1])]])[1].tobytes()


def png(bits: int, mask: np.ndarray) -> bytes:
    """A grey PNG of 1 to 8 bits, byte by byte."""
    rows = b""
    for row in mask:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    height, width = mask.shape
    return png_of(width, height, bits, 0, zlib.compress(rows))


def png_of(width: int, height: int, bits: int, kind: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RGBA, GREY_ALPHA = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
COLORED = {
    "png": encoded(RGB, "PNG"),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "png alpha": encoded(RGBA, "PNG"),
    "bmp alpha": encoded(RGBA, "BMP"),
    "tiff alpha": encoded(RGBA, "TIFF"),
    "webp alpha": encoded(RGBA, "WEBP", lossless=True, exact=True),
    "png 16": by_opencv(WIDE, ".png"),
    "tiff 16": by_opencv(WIDE, ".tiff"),
    "png 16 alpha": by_opencv(np.dstack([WIDE, ALPHA.astype(np.uint16) * 257]), ".png"),
    "tiff 16 alpha": by_opencv(np.dstack([WIDE, ALPHA.astype(np.uint16) * 257]), ".tiff"),
}
GREYS = {
    "png": encoded(GREY, "PNG"),
    "bmp": encoded(GREY, "BMP"),
    "tiff": encoded(GREY, "TIFF"),
    "webp": encoded(GREY, "WEBP", lossless=True),
    "jpeg": encoded(GREY, "JPEG", quality=100),
    "png alpha": encoded(GREY_ALPHA, "PNG"),
    "tiff alpha": encoded(GREY_ALPHA, "TIFF"),
    "png 16": encoded(GREY.astype(np.uint16) * 257, "PNG"),
    "tiff 16": encoded(GREY.astype(np.uint16) * 257, "TIFF"),
}


@pytest.mark.parametrize("name", COLORED)
def test_one_picture_in_every_format(name: str) -> None:
    assert np.array_equal(decode_image(COLORED[name], name), RGB)


@pytest.mark.parametrize("name", GREYS)
def test_grey_is_three_equal_channels(name: str) -> None:
    assert np.array_equal(decode_image(GREYS[name], name), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_its_colours(file_format: str) -> None:
    buffer = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    Image.fromarray(RGB).convert("CMYK").save(buffer, file_format, **options)
    found = decode_image(buffer.getvalue(), "x").astype(int)
    assert np.abs(found - RGB).max() <= 3


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.rot90(np.flipud(pixels), 3),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: np.rot90(np.flipud(pixels), 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
"""EXIF orientation -> from the stored pixels to those that are seen, clockwise by 3 quarters."""
TURNED = [("JPEG", RGB), ("PNG", RGB), ("TIFF", RGB), ("TIFF", RGBA), ("WEBP", RGB)]


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
@pytest.mark.parametrize(("file_format", "pixels"), TURNED)
def test_pictures_are_upright(
    tmp_path: Path, file_format: str, pixels: np.ndarray, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    of_formats: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = of_formats.get(file_format, {})
    path = tmp_path / f"x.{file_format.lower()}"
    Image.fromarray(pixels).save(path, file_format, exif=exif.tobytes(), **options)
    turned = TURNS[orientation](RGB) if orientation in TURNS else RGB
    expected = turned.astype(int)
    found = read_image(path)
    assert image_size(path) == found.shape[:2] == expected.shape[:2]
    assert np.abs(found - expected).max() <= (4 if file_format == "JPEG" else 0)


def test_exif_that_makes_no_sense_is_no_obstacle(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    entry = content.index(struct.pack(">HHI", 0x0112, 3, 1))
    path = tmp_path / "x.jpg"
    for kind, count in ((2, 4), (5, 1), (3, 2**31), (99, 1)):
        head = struct.pack(">HHI", 0x0112, kind, count)
        path.write_bytes(content[:entry] + head + content[entry + 8 :])
        assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("float", encoded(GREY.astype(np.float32), "TIFF")),
        ("float colours", cv2.imencode(".tiff", (RGB / 255).astype(np.float32))[1].tobytes()),
        ("32 bits", encoded(GREY.astype(np.int32), "TIFF")),
        ("gif", encoded(GREY, "GIF")),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        ("empty", b""),
        ("text", b"words"),
        ("half", encoded(NOISE, "PNG")[:9000]),
        ("short head", b"\x89PNG\r\n\x1a\n\0\0\0\x05IHDR\0\0\0"),
        ("a mode of its own", b"\x89PNG\r\n\x1a\n" + png_of(4, 4, 3, 7, b"")[8:]),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    ],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for read in (read_image, lambda path: decode_image(path.read_bytes(), str(path))):
        with pytest.raises(UserError, match=r"x\.png is not a readable image") as caught:
            read(path)
        assert "\n" not in str(caught.value)


# masks


ID_FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(MASK, "PNG"),
    "png 2 bits": lambda: png(2, MASK),
    "png 4 bits": lambda: png(4, MASK),
    "png 16 bits": lambda: encoded(MASK.astype(np.uint16), "PNG"),
    "png palette": lambda: encoded(MASK, "PNG", palette=True),
    "bmp": lambda: encoded(MASK, "BMP"),
    "tiff": lambda: encoded(MASK, "TIFF"),
    "tiff lzw": lambda: encoded(MASK, "TIFF", compression="tiff_lzw"),
    "tiff 16 bits": lambda: encoded(MASK.astype(np.uint16), "TIFF"),
    "tiff 32 bits": lambda: encoded(MASK.astype(np.int32), "TIFF"),
    "tiff signed": lambda: cv2.imencode(".tiff", MASK.astype(np.int8))[1].tobytes(),
}


@pytest.mark.parametrize("name", ID_FILES)
def test_one_mask_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(ID_FILES[name]())
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_all_ids_of_few_bits(tmp_path: Path, bits: int) -> None:
    ids = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    path = tmp_path / "x.png"
    path.write_bytes(png(bits, ids))
    assert np.array_equal(read_mask(path), ids)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_negative_numbers_are_kept_and_are_no_ids(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(cv2.imencode(".tiff", MASK.astype(dtype) - dtype(1))[1].tobytes())
    assert np.array_equal(read_values(path), MASK.astype(int) - 1)
    with pytest.raises(UserError, match="class id -1 is out of range"):
        read_mask(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_are_turned_as_images_are(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    mask, image = tmp_path / f"mask{suffix}", tmp_path / f"image{suffix}"
    Image.fromarray(MASK).save(mask, exif=exif)
    Image.fromarray(np.stack([MASK] * 3, axis=-1)).save(image, exif=exif)
    assert np.array_equal(read_mask(mask), read_image(image)[..., 0])
    assert np.array_equal(read_colors(mask), read_image(image))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(MASK, "JPEG"), "is a JPEG: its compression changes class ids"),
        (encoded(MASK, "TIFF", compression="jpeg"), "is a JPEG: its compression"),
        (encoded(MASK, "TIFF", tiffinfo={262: 0}), "white as 0"),
        (encoded(RGB, "PNG"), "is a RGB image; a mask has one channel"),
        (encoded(RGB, "WEBP", lossless=True), "is a RGB image; a mask has one channel"),
        (encoded(MASK.astype(np.float32), "TIFF"), "is a F image; a mask has one channel"),
        (encoded(MASK.astype(np.int32) + 300, "TIFF"), "class id 300 is out of range"),
    ],
)
def test_masks_that_would_be_misread_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_mask(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_those_that_a_viewer_shows(tmp_path: Path, mode: str) -> None:
    palette = [0, 0, 0, 200, 10, 10, 10, 200, 10, 10, 10, 200]
    shown = np.array(palette, np.uint8).reshape(4, 3)[MASK]
    picture = Image.fromarray(MASK)
    picture.putpalette(palette)
    path = tmp_path / "x.png"
    picture.convert(mode).save(path)
    assert np.array_equal(read_colors(path), shown)


# files that are too large, and those that are no images by their names


def test_a_bomb_is_one_line_and_small_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of(60000, 60000, 8, 0, zlib.compress(bytes(60001 * 100))))
    bmp = tmp_path / "size.bmp"
    content = bytearray(encoded(MASK, "BMP"))
    content[18:26] = struct.pack("<ii", 2**30, 2**30)
    bmp.write_bytes(content)
    sparse = tmp_path / "sparse.png"
    sparse.touch()
    with sparse.open("r+b") as file:
        file.write(encoded(MASK, "PNG"))
        file.truncate(20 << 30)
    program = """
import resource, sys
from pathlib import Path
from aicsd.errors import UserError
from aicsd.images import image_size, read_colors, read_image, read_mask
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for path in map(Path, sys.argv[1:]):
    for read in (image_size, read_image, read_mask, read_colors):
        try:
            read(path)
        except UserError as error:
            print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, bomb, bmp, sparse],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all("has 60000x60000 pixels, and the largest image" in line for line in lines[:4])
    assert all("size.bmp" in line for line in lines[4:8])
    assert all("sparse.png has more than 2 GB" in line for line in lines[8:])


def test_orthophotos_are_no_bombs(tmp_path: Path) -> None:
    """More pixels than Pillow reads by itself, without a warning."""
    assert 178_956_970 < 13500 * 13500 < MAX_PIXELS
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(13501 * 500)) for _ in range(27)) + rows.flush()
    path = tmp_path / "x.png"
    path.write_bytes(png_of(13500, 13500, 8, 0, data))
    assert image_size(path) == (13500, 13500)
    assert read_mask(path).shape == (13500, 13500)


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "a.JPG",
        "._b.png",
        ".DS_Store",
        "Thumbs.db",
        "c.txt",
        ".x.png.7.tmp.png",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]
