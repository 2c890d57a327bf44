"""What a dataset is, and the base of all that keep images and masks in files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from torch import Tensor

from aicsd.errors import UserError
from aicsd.types import IGNORE_INDEX

UInt8Array = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
ORIENTATION_TAG = 0x0112  # of EXIF; 5 to 8 exchange width and height
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Classes(NamedTuple):
    """Class names by id, and the colour that pictures show each in."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]


class Sample(NamedTuple):
    """One image with its labels."""

    image: UInt8Array
    """(H, W, 3) RGB."""
    mask: UInt8Array
    """(H, W) class ids; 255 where there is no label."""
    maps: Tensor | None = None
    """(C, h, w) float32: cached teacher logits of the whole image, at stride 4."""


class SegDataset(Protocol):
    """A split of a dataset. ``read(i)`` gives the same sample each time, in any process.

    A class that inherits from this one needs ``classes``, ``names``, ``__len__`` and ``read``.
    """

    classes: Classes
    names: list[str]
    """A name for every sample, unique in the split."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image; files override this to leave the pixels undecoded."""
        height, width = self.read(index).mask.shape
        return height, width

    @property
    def labelled(self) -> Sequence[int]:
        """Indices of the samples with labels."""
        return range(len(self))


class Subset:
    """``count`` samples of a dataset, spread evenly over it.

    Raises:
        UserError: more samples than there are.
    """

    def __init__(self, dataset: SegDataset, count: int) -> None:
        if count > len(dataset):
            raise UserError(
                f"data.train_images is {count}, but the split has {len(dataset)} images"
            )
        self.dataset = dataset
        self.indices = [index * len(dataset) // count for index in range(count)]
        self.classes = dataset.classes
        self.names = [dataset.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        return self.dataset.read(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(self.indices[index])

    @property
    def labelled(self) -> list[int]:
        labelled = set(self.dataset.labelled)
        return [place for place, index in enumerate(self.indices) if index in labelled]


class PartlyLabelled:
    """A dataset of which the ``count`` samples of ``Subset`` keep their labels, and no other.

    Raises:
        UserError: more samples than there are.
    """

    def __init__(self, dataset: SegDataset, count: int) -> None:
        self.dataset = dataset
        kept = frozenset(Subset(dataset, count).indices)
        self.labelled = [index for index in dataset.labelled if index in kept]
        self._kept = kept
        self.classes = dataset.classes
        self.names = dataset.names

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        sample = self.dataset.read(index)
        if index in self._kept:
            return sample
        return sample._replace(mask=np.full_like(sample.mask, IGNORE_INDEX))

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index)


class Pair(NamedTuple):
    """The files of one sample."""

    image: Path
    mask: Path | None
    """None: the image has no labels; its mask is 255 everywhere."""


class MasksWithheldError(UserError):
    """The owners of a benchmark keep the masks of this split; only its images can be used."""


class FileDataset:
    """Images and single-channel id masks in files of equal size.

    Args:
        pairs: the files of every sample; they need not be there until they are read.
        classes: names and colours.
        stored_ids: id stored in the mask files -> class id, where they differ; every other stored
            id is ignored. Without it the stored ids are the class ids, 255 is ignored, and any
            other id is an error.
        official_count: samples that the owners of the dataset count in this split, if known.
        notes: what is odd about the split, though every sample of it can be used; one line each.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        classes: Classes,
        stored_ids: dict[int, int] | None = None,
        *,
        official_count: int | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.notes = list(notes)
        if official_count is not None:
            self.notes += count_note(len(self.pairs), official_count)
        self.names = [pair.image.stem for pair in self.pairs]
        self._lookup = None
        if stored_ids is not None:
            self._lookup = np.full(256, IGNORE_INDEX, np.uint8)
            for stored, class_id in stored_ids.items():
                self._lookup[stored] = class_id
        ids = np.arange(256)
        self._wrong = ((ids >= len(classes.names)) & (ids != IGNORE_INDEX)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def labelled(self) -> list[int]:
        return [index for index, pair in enumerate(self.pairs) if pair.mask is not None]

    def read(self, index: int) -> Sample:
        """Decode sample ``index``; a broken or mismatched file is a UserError that names it."""
        pair = self.pairs[index]
        image = read_image(pair.image)
        if pair.mask is None:
            return Sample(image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8))
        mask = self.read_mask(pair.mask)
        if image.shape[:2] != mask.shape:
            raise size_mismatch(pair, image.shape[:2], mask.shape)
        return Sample(image, mask)

    def read_mask(self, path: Path) -> UInt8Array:
        """(H, W) class ids of a mask file; an id that no class has is a UserError."""
        mask = read_mask(path)
        if self._lookup is not None:
            return cv2.LUT(mask, self._lookup).astype(np.uint8, copy=False)
        wrong = cv2.LUT(mask, self._wrong).view(np.bool_)
        if wrong.any():
            count = len(self.classes.names)
            raise UserError(
                f"{path}: class id {mask[wrong].min()} is out of range; there are {count} classes "
                f"(ids 0 to {count - 1}, {IGNORE_INDEX} = ignored)"
            )
        return mask

    def require_files(self) -> None:
        """Refuse a split of which files are missing, naming the first."""
        missing = [path for pair in self.pairs for path in pair if path and not path.is_file()]
        if missing:
            raise UserError(
                f"no file {missing[0]}{_and_more(len(missing) - 1, 'files')}, though the split "
                "needs it (aicsd data check lists every such file)"
            )

    def check_pair(self, index: int) -> None:
        """Refuse a mask with wrong ids or of another size than its image, without decoding that."""
        pair, size = self.pairs[index], self.size(index)
        if pair.mask is None:
            return
        mask = self.read_mask(pair.mask)
        if mask.shape != size:
            raise size_mismatch(pair, size, mask.shape)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, from the head of its file."""
        path = self.pairs[index].image
        try:
            with PILImage.open(path) as header:
                width, height = header.size
                exif = header.getexif() if "exif" in header.info else {}
        except (OSError, UnidentifiedImageError) as error:
            raise _unreadable(path, error) from error
        turned = exif.get(ORIENTATION_TAG, 1) >= 5  # decoding turns the photo upright
        return (width, height) if turned else (height, width)


def count_note(count: int, official: int) -> list[str]:
    """A line for a split that is not complete; nothing for a complete one."""
    return [] if count == official else [f"{count} images; the official split has {official}"]


def size_mismatch(pair: Pair, image: tuple[int, ...], mask: tuple[int, ...]) -> UserError:
    """The error for an image (H, W, ...) and a mask (H, W) of different sizes."""
    return UserError(
        f"{pair.image} is {image[1]}x{image[0]} but its mask {pair.mask} is {mask[1]}x{mask[0]}; "
        "they must have one size"
    )


def read_image(path: Path) -> UInt8Array:
    """(H, W, 3) uint8 RGB of an image file."""
    if not path.is_file():
        raise UserError(f"no image at {path}")
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UserError(f"{path} is not a readable image (empty, truncated or another format)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def read_mask(path: Path) -> UInt8Array:
    """(H, W) uint8 ids of a grey or palette image file, or of a ``.mat`` file of SBD."""
    if path.suffix == ".mat":
        return _read_mat(path)
    # PIL, because OpenCV turns the ids of a palette PNG into colours
    try:
        with PILImage.open(path) as file:
            if file.mode not in ("L", "P", "1", "I", "I;16"):
                raise UserError(
                    f"{path} is a {file.mode} image; a mask has one channel of class ids "
                    "(8-bit grey or palette PNG)"
                )
            mask = np.asarray(file)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise _unreadable(path, error) from error
    if mask.dtype != np.uint8 and mask.max(initial=0) > IGNORE_INDEX:
        raise UserError(f"{path}: class id {mask.max()} is out of range; ids are 0 to 255")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _read_mat(path: Path) -> UInt8Array:
    """(H, W) uint8 ids of ``GTcls.Segmentation``, the struct of SBD (Hariharan et al., 2011)."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"no file at {path}")
    try:
        mask = np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"])
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(
            f"{path} is not a readable SBD mask (empty, truncated or without GTcls.Segmentation): "
            f"{reason}"
        ) from error
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise UserError(
            f"{path}: GTcls.Segmentation is {mask.dtype} of shape {mask.shape}; it must be whole "
            "numbers of shape (H, W)"
        )
    if mask.min(initial=0) < 0 or mask.max(initial=0) > IGNORE_INDEX:
        raise UserError(f"{path}: class ids {mask.min()} to {mask.max()}; ids are 0 to 255")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _unreadable(path: Path, error: Exception) -> UserError:
    if not path.is_file():
        return UserError(f"no file at {path}")
    reason = " ".join(str(error).split())
    return UserError(
        f"{path} is not a readable image (empty, truncated or another format): {reason}"
    )


def list_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def require_folder(folder: Path) -> Path:
    """``folder``, if it is one."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    return folder


def require_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; none is an error."""
    found = list_images(require_folder(folder))
    if not found:
        raise UserError(f"no images in {folder} (looked for {' '.join(IMAGE_SUFFIXES)})")
    return found


def match_masks(images: Path, masks: Path) -> list[Pair]:
    """Pair every image with the mask of the same stem; refuse missing folders and missing masks."""
    found = require_images(images)
    require_folder(masks)
    by_stem = {path.stem: path for path in list_images(masks)}
    missing = [path for path in found if path.stem not in by_stem]
    if missing:
        more = _and_more(len(missing) - 1, "images")
        raise UserError(f"no mask for {missing[0]}{more} in {masks}; a mask has its image's name")
    return [Pair(path, by_stem[path.stem]) for path in found]


def _and_more(count: int, what: str) -> str:
    return f" and {count} more {what}" if count else ""
