"""Build, check and open a cache of teacher logits."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from aicsd.data.augment import MAP_STRIDE
from aicsd.data.loaders import sample_loader
from aicsd.data.protocol import Sample, SegDataset
from aicsd.errors import UserError, enough_memory
from aicsd.images import UInt8Array
from aicsd.messages import say
from aicsd.models import Segmenter, image_batch
from aicsd.models.maps import sample_aligned
from aicsd.teacher.cache_file import (
    CHOOSE,
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
    read_map,
    require_sound,
    sound_maps,
)
from aicsd.teacher.teacher import Teacher
from aicsd.terminal import progress_bar
from aicsd.types import LOGITS

_WHOLE = (
    "for the teacher on the whole of {0!r}, {2}x{1} pixels: cut large images into tiles, or leave "
    "teacher_cache out: without it, the teacher is given crops"
)

_LATER_FIELDS = {"least": 1, "bicubic": False, "resizing": "stretch"}
"""Fields of the input that the first version did not have, and their defaults."""
_LEFT_OUT = (
    ("least", "resizing"),  # of this version
    ("least",),
    ("resizing",),
    ("bicubic", "resizing"),
    ("least", "bicubic", "resizing"),
)
"""Fields that a digest leaves out at their defaults, by version, so that older ones are known."""


def fingerprint(model: Segmenter, known: str | None = None) -> str:
    """Digest of all that decides about a network's logits: tensors, structure, input, classes.

    Args:
        model: the network.
        known: a digest that is given back if an earlier version gives it to this network.
    """
    own, *earlier = (partial(_fingerprint, model, left_out) for left_out in _LEFT_OUT)
    found = own()
    if known is None or known == found:
        return found
    return known if any(known == digest() for digest in earlier) else found


def _fingerprint(model: Segmenter, left_out: tuple[str, ...]) -> str:
    structure = model.origin or repr(model.net)
    fields = model.input._asdict().items()
    spec = [value for name, value in fields if name not in left_out or value != _LATER_FIELDS[name]]
    facts = (structure, model.classes.names, spec, model.align_corners)
    digest = sha256(json.dumps(facts).encode())
    for name, tensor in model.net.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class TeacherCache:
    """The cache that a run names; it is built if it is not there.

    Args:
        folder: folder of the cache.
        top_k: number of largest logits of a cell to keep; 0 keeps all.
    """

    folder: Path
    top_k: int

    def attach(self, dataset: SegDataset, teacher: Teacher, workers: int) -> WithTeacherMaps:
        """``dataset`` with the teacher's logits, which are computed as far as they are missing.

        Of several processes one computes, and the others wait for it.

        Args:
            dataset: the training images.
            teacher: a teacher on the device that computes.
            workers: processes that load images.

        Raises:
            UserError: a cache of another teacher or other data, a damaged one, a full disk.
        """
        held = read_index(self.folder)
        identity = fingerprint(teacher.model, None if held is None else held.key.teacher)
        classes = dataset.classes.names
        index = self._read(identity, classes)
        if index is None or not index.complete:
            sizes = tuple(dataset.size(number) for number in range(len(dataset)))
            names = tuple(dataset.names)
            # an incomplete one is continued at its stride
            stride = stride_of(teacher) if index is None else index.key.stride
            key = CacheKey(identity, classes, self.top_k, names, sizes, stride)
            self._require_space(key)
            with _alone(self.folder):
                index = self._read(identity, classes)  # another process may have built it meanwhile
                if index is None or not index.complete:
                    index = self._build(key, index, dataset, teacher, workers)
        require_sound(self.folder, index)
        return WithTeacherMaps(dataset, self.folder, index)

    def _read(self, identity: str, classes: tuple[str, ...]) -> Index | None:
        """The cache as it is now; one that belongs to something else is refused."""
        index = read_index(self.folder)
        if index is None:
            return None
        held = index.key
        for what, is_same in (
            ("another teacher", held.teacher == identity),
            (f"other classes ({', '.join(held.classes)})", held.classes == classes),
            (f"teacher_cache_top_k {held.top_k}, not {self.top_k}", held.top_k == self.top_k),
        ):
            if not is_same:
                raise UserError(f"teacher_cache {self.folder} is of {what}; {CHOOSE}")
        return index

    def _require_space(self, key: CacheKey) -> None:
        path = self.folder / LOGITS_FILE
        done = path.stat().st_size if path.is_file() else 0
        missing = key.offsets()[-1] - done
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if missing > free:
            raise UserError(
                f"teacher_cache: {self.folder} needs {_size(missing)} and the disk has "
                f"{_size(free)} left; choose a folder on another disk, or keep less with "
                "teacher_cache_top_k"
            )

    def _build(
        self,
        key: CacheKey,
        begun: Index | None,
        dataset: SegDataset,
        teacher: Teacher,
        workers: int,
    ) -> Index:
        """Compute what is missing, image by image; what is done stays, whatever happens."""
        if begun is not None and begun.key != key:
            raise UserError(f"teacher_cache {self.folder} was begun with other data; {CHOOSE}")
        done: list[Checksums] = []
        if begun is not None:
            sound = zip(begun.checks, sound_maps(self.folder, begun), strict=True)
            done = [checks for checks, _ in takewhile(lambda pair: pair[1], sound)]
        offsets, count = key.offsets(), len(dataset)
        held = f", {len(done)} of them done" if done else ""
        say(f"{count} images{held}, {_size(offsets[-1])} in {self.folder}", "teacher cache")
        lines = [json.dumps(checks) + "\n" for checks in done]
        text = "".join([first_line(key), *lines])  # the lines of a begun index are the same
        with (
            _writing(self.folder),
            (self.folder / LOGITS_FILE).open("ab") as maps,
            (self.folder / INDEX_FILE).open("ab") as index,
            progress_bar() as bar,
        ):
            maps.truncate(offsets[len(done)])
            if begun is not None:
                index.truncate(len(text.encode()))
            else:
                index.truncate(0)
                index.write(text.encode())
            task = bar.add_task("teacher cache", total=count, completed=len(done), note="")
            for number, sample in sample_loader(dataset, workers, rank=len(done)):
                if sample.image.shape[:2] != key.sizes[number]:
                    raise UserError(f"image {dataset.names[number]!r} has changed its size")
                with enough_memory(_WHOLE.format(dataset.names[number], *key.sizes[number])):
                    logits = compute_map(teacher, sample.image, key.stride)
                stored = encode(logits, self.top_k)
                maps.write(stored)
                maps.flush()  # before the index line of this map
                done.append(Checksums(checksum(sample.image), zlib.crc32(stored)))
                line = json.dumps(done[-1]) + "\n"
                text += line
                index.write(line.encode())
                index.flush()
                bar.update(task, completed=number + 1)
            index.write(last_line(text.encode()).encode())
        return Index(key, done, complete=True)


def stride_of(teacher: Teacher) -> int:
    """The stride at which a teacher is stored: that of its logits, or 4 where they are finer."""
    return max(MAP_STRIDE, teacher.maps[LOGITS].stride)


def compute_map(teacher: Teacher, image: UInt8Array, stride: int) -> Tensor:
    """(H, W, 3) uint8 -> (C, h, w) logits on the CPU, at the stride of the cache."""
    # indexed, which changes the stride of the batch: convolutions then round as they did for the
    # caches of earlier versions
    output = teacher(image_batch([image], teacher.model.device)[0][None])
    size = (image.shape[0], image.shape[1])
    return sample_aligned(output.logits, size, map_size(size, stride), output.align_corners)[
        0
    ].cpu()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"teacher_cache {folder} cannot be written: {error.strerror or error}"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process builds here; a process that ends, ends its turn."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / INDEX_FILE).open("ab")
    with lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(count: int) -> str:
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if count >= u[0]), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


class WithTeacherMaps:
    """A dataset whose samples carry the teacher's logits.

    Args:
        dataset: its images are among those of the cache.
        folder: folder of a complete cache.
        index: index of the cache.

    Raises:
        UserError: images that the cache does not hold, or holds with other pixels; for the first
            and the last one here, for any other when it is read.
    """

    def __init__(self, dataset: SegDataset, folder: Path, index: Index) -> None:
        self.dataset, self.folder = dataset, folder
        self.classes, self.names = dataset.classes, dataset.names
        self.labelled = dataset.labelled
        self._key, self._checks = index.key, index.checks
        self.map_stride = index.key.stride
        self._offsets = index.key.offsets()
        places = {name: place for place, name in enumerate(index.key.names)}
        unknown = [name for name in dataset.names if name not in places]
        if unknown:
            raise UserError(
                f"teacher_cache {folder} is of other data: it does not hold {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} more images' if unknown[1:] else ''}; {CHOOSE}"
            )
        self._places = [places[name] for name in dataset.names]
        for number in {0, len(dataset) - 1}:
            self.read(number)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        """Read a sample, compare it with the cache, and add its maps."""
        sample, place = self.dataset.read(index), self._places[index]
        same_size = sample.image.shape[:2] == self._key.sizes[place]
        if not same_size or checksum(sample.image) != self._checks[place].image:
            raise UserError(
                f"teacher_cache {self.folder} is of other data: its {self.names[index]!r} was "
                f"another image; {CHOOSE}"
            )
        return sample._replace(maps=self._maps(place))

    def size(self, index: int) -> tuple[int, int]:
        return self._key.sizes[self._places[index]]

    def _maps(self, place: int) -> Tensor:
        key = self._key
        stored = read_map(self.folder, self._offsets[place], key.bytes_of(place))
        return decode(stored, len(key.classes), map_size(key.sizes[place], key.stride), key.top_k)
