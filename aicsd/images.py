"""Image and mask files, and class ids as pictures: the one way to read and write them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from aicsd.errors import UserError, one_line
from aicsd.files import atomic_path
from aicsd.types import IGNORE_INDEX

UInt8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.integer[Any]]
Color = tuple[int, int, int]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""Formats that are read, as Pillow calls them; the content of a file decides, not its suffix."""
LOSSY = ("JPEG", "MPO")
MAX_PIXELS = 2**28
"""Pixels of an image, 16384 x 16384. Decoded it takes three bytes for each."""
MAX_BYTES = 2**31
"""Bytes of an image file."""
ORIENTATION_TAG = 0x0112  # of EXIF
SAMPLE_FORMAT_TAG = 339  # of TIFF; 2: signed
ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow that hold one whole number a pixel."""
GREY_LEVELS = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow spreads grey values of 2 and 4 bits over 0 to 255."""
IGNORED_COLOR = (224, 224, 224)
ROWS_AT_ONCE = 256
"""Rows of an overlay; as floats, a large image would take many times its memory."""

# broken files are reported in one line by this package
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImageError(UserError):
    """The file is not an image, is damaged, or has an unsupported format."""


def read_image(path: Path) -> UInt8Array:
    """(H, W, 3) uint8 RGB of an image file, upright by its EXIF orientation.

    Grey becomes three equal channels, 16 bits their upper 8; an alpha channel is left out.

    Raises:
        UserError: no such file, another format, a damaged or too large one, or values that are no
            colours (floating point, Lab).
    """
    with _opened(path, "image") as picture:
        return _to_rgb(picture, lambda: np.fromfile(path, np.uint8))


def decode_image(data: bytes, name: str) -> UInt8Array:
    """(H, W, 3) uint8 RGB of the bytes of an image file, as :func:`read_image`.

    Raises:
        UserError: as :func:`read_image`, naming ``name``.
    """
    with _identified(io.BytesIO(data), name) as picture:
        return _to_rgb(picture, lambda: np.frombuffer(data, np.uint8))


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of an image, from the head of its file.

    Raises:
        UserError: no such file, another format, a damaged or too large one.
    """
    with _opened(path) as picture:
        return _size(picture)


def decode_size(data: bytes, name: str) -> tuple[int, int]:
    """(H, W) of the bytes of an image file, as :func:`image_size`.

    Raises:
        UserError: as :func:`image_size`, naming ``name``.
    """
    with _identified(io.BytesIO(data), name) as picture:
        return _size(picture)


def image_orientation(path: Path) -> int:
    """EXIF orientation of an image file, 1 (upright) to 8; 1 of a file that cannot be read."""
    try:
        with _opened(path) as picture:
            if picture.format != "TIFF":
                return _orientation(picture)
            found = picture.getexif().get(ORIENTATION_TAG, 1)  # as stored: it is not decoded here
            return found if isinstance(found, int) and 1 <= found <= 8 else 1
    except UserError:
        return 1


def _size(picture: PILImage.Image) -> tuple[int, int]:
    width, height = picture.size
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def decode_values(data: bytes, name: str, lossy: bool = False) -> IntArray:
    """(H, W) whole numbers of the bytes of an image file, as :func:`read_values`.

    Raises:
        UserError: as :func:`read_values`, naming ``name``.
    """
    with _identified(io.BytesIO(data), name) as picture:
        return _values(picture, name, lossy)


def read_values(path: Path, lossy: bool = False) -> IntArray:
    """(H, W) whole numbers of a grey or palette image, as they are stored.

    Args:
        path: PNG, BMP or TIFF.
        lossy: read JPEG too, which changes values along edges.

    Raises:
        UserError: no such file, another format, a damaged or too large one, several channels, or
            a compression that changes values.
    """
    with _opened(path) as picture:
        return _values(picture, str(path), lossy)


def _values(picture: PILImage.Image, name: str, lossy: bool) -> IntArray:
    _require_lossless(picture, name, lossy)
    if picture.mode not in ONE_CHANNEL:
        raise UserError(
            f"{name} is a {picture.mode} image; a mask has one channel of class ids (8-bit "
            "grey or palette PNG), or colours that a classes.csv (name,r,g,b) lists"
        )
    factor = _grey_factor(picture, name)
    signed = picture.format == "TIFF" and picture.tag_v2.get(SAMPLE_FORMAT_TAG) == (2,)  # type: ignore[attr-defined]
    values = _upright(np.asarray(picture), _orientation(picture)) // factor
    if signed and values.dtype == np.uint8:
        values = values.view(np.int8)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def read_mask(path: Path, lossy: bool = False) -> UInt8Array:
    """(H, W) uint8 class ids of a grey or palette image file.

    Raises:
        UserError: as :func:`read_values`, or a number outside 0 to 255.
    """
    values = read_values(path, lossy)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, np.uint8)
    wrong = values[(values < 0) | (values > IGNORE_INDEX)]
    if wrong.size:
        raise UserError(f"{path}: class id {wrong.flat[0]} is out of range; ids are 0 to 255")
    return np.ascontiguousarray(values, np.uint8)


def read_colors(path: Path, lossy: bool = False) -> UInt8Array:
    """(H, W, 3) colours of a mask of any kind: those of its palette, grey ones, without alpha.

    Raises:
        UserError: as :func:`read_values`, but for the number of channels.
    """
    with _opened(path) as picture:
        _require_lossless(picture, path, lossy)
        if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise UserError(f"{path} is a {picture.mode} image; a mask of colours has 8-bit ones")
        colors = np.asarray(picture.convert("RGB"))
        return np.ascontiguousarray(_upright(colors, _orientation(picture)))


@contextmanager
def _opened(path: Path, what: str = "file") -> Iterator[PILImage.Image]:
    if not path.is_file():
        raise UserError(f"no {what} at {path}")
    with _reading(str(path)), path.open("rb") as file:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES >> 30} GB; no image is that large")
        with _identified(file, str(path)) as picture:
            yield picture


@contextmanager
def _identified(file: IO[bytes], name: str) -> Iterator[PILImage.Image]:
    """The image in ``file``, not decoded yet, after its number of pixels was checked."""
    PILImage.init()
    with _reading(name):
        start = file.read(32)
        for format_name in FORMATS:
            # not Image.open, whose own limit is lower than orthophotos and slides need
            factory, accepts = PILImage.OPEN[format_name]
            if accepts is None or accepts(start) is True:
                file.seek(0)
                with factory(file, "") as picture:
                    width, height = picture.size
                    if width * height > MAX_PIXELS:
                        raise UserError(
                            f"{name} has {width}x{height} pixels, and the largest image that is "
                            f"read has {MAX_PIXELS >> 20} million; cut it into tiles"
                        )
                    yield picture
                return
        raise UnreadableImageError(
            f"{name} is not a readable image (empty, truncated or another format)"
        )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """A damaged file as a UserError: decoders raise nearly anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise UnreadableImageError(
            f"{name} is not a readable image (empty, truncated or another format): {reason}"
        ) from error


def _to_rgb(picture: PILImage.Image, load: Callable[[], UInt8Array]) -> UInt8Array:
    if picture.mode in ("F", "LAB"):
        raise ValueError(f"the mode {picture.mode} holds no 8- or 16-bit colours")
    if picture.format == "TIFF" and picture.mode == "RGBA":
        # OpenCV multiplies the colours by alpha in this format alone
        return np.ascontiguousarray(picture.convert("RGB"), np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    if picture.format != "TIFF":
        # turned here: of EXIF that makes no sense, OpenCV and Pillow would make two sizes
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    pixels: npt.NDArray[Any] | None = cv2.imdecode(load(), flags)
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError("its pixels cannot be decoded")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    upright = np.ascontiguousarray(_upright(pixels, _orientation(picture)))
    return cv2.cvtColor(upright, cv2.COLOR_BGR2RGB, dst=upright).astype(np.uint8, copy=False)


def _orientation(picture: PILImage.Image) -> int:
    """1 to 8, as EXIF counts; 5 to 8 exchange width and height."""
    if picture.format == "TIFF" or "exif" not in picture.info:
        return 1  # Pillow applies the orientation of a TIFF
    try:
        found = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1  # decoders ignore EXIF that makes no sense, too
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """(H, W, ...) turned and mirrored by an orientation of EXIF."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _require_lossless(picture: PILImage.Image, path: object, lossy: bool) -> None:
    if not lossy and (picture.format in LOSSY or picture.info.get("compression") == "jpeg"):
        raise UserError(
            f"{path} is a JPEG: its compression changes class ids along every edge; save masks as "
            "PNG, or name what the values stand for, with data.options mask_values or a "
            "classes.csv, and add nearest: true"
        )


def _grey_factor(picture: PILImage.Image, path: object) -> int:
    tile = getattr(picture, "tile", None)
    arguments = tile[0][3] if tile else ""
    kind = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    if picture.mode == "L" and isinstance(kind, str) and kind.endswith("I"):
        raise UserError(f"{path} stores white as 0 (TIFF WhiteIsZero); save it as PNG")
    return GREY_LEVELS.get(str(kind), 1) if picture.mode == "L" else 1


def list_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def is_video(path: Path) -> bool:
    """Whether a file has the ending of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image, is not hidden, and is no folder."""
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return named and not path.is_dir()


def color_table(palette: tuple[Color, ...]) -> UInt8Array:
    """(256, 3) RGB of every id; ignored pixels are light grey."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORED_COLOR
    return table


def colorize(mask: UInt8Array, palette: tuple[Color, ...]) -> UInt8Array:
    """(H, W) class ids -> (H, W, 3) RGB; ignored pixels are light grey."""
    colors: UInt8Array = color_table(palette)[mask]
    return colors


def overlay(
    image: UInt8Array, mask: UInt8Array, palette: tuple[Color, ...], opacity: float = 0.5
) -> UInt8Array:
    """(H, W, 3) image with the class colours over it; ignored pixels stay as they are.

    Raises:
        UserError: an opacity outside 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity is {opacity}; it is 0 to 1")
    result = np.empty_like(image)
    for top in range(0, len(image), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        weight = np.where(mask[rows] == IGNORE_INDEX, 0.0, opacity)[..., None].astype(np.float32)
        mixed = image[rows] * (1 - weight) + colorize(mask[rows], palette) * weight
        result[rows] = np.rint(mixed).astype(np.uint8)
    return result


def encode_ids(mask: UInt8Array, palette: tuple[Color, ...] | None) -> bytes:
    """(H, W) ids as an 8-bit PNG: grey without a palette, else viewers show its colours."""
    picture = PILImage.fromarray(mask)
    if palette is not None:
        picture.putpalette(color_table(palette).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_ids(mask: UInt8Array, palette: tuple[Color, ...], path: Path) -> None:
    """Write class ids as an 8-bit palette PNG: the values are the ids, viewers show the colours."""
    content = encode_ids(mask, palette)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def encode_image(image: UInt8Array) -> bytes:
    """An (H, W, 3) RGB picture as PNG."""
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_image(image: UInt8Array, path: Path) -> None:
    """Write an (H, W, 3) RGB picture as PNG."""
    with atomic_path(path) as temporary:
        PILImage.fromarray(image).save(temporary, format="PNG")
