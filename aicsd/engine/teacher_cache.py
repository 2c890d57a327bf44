"""The teacher runs once over the training images; what it says goes into a cache."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from aicsd.data.base import SegDataset, UInt8Array, image_size
from aicsd.data.loaders import sample_loader
from aicsd.data.teacher_cache import (
    CHOOSE,
    INDEX_FILE,
    LOGITS_FILE,
    Checks,
    Contents,
    Index,
    Taught,
    cells_of,
    checksum,
    encode,
    first_line,
    last_line,
    read_index,
    require_sound,
    sound_maps,
)
from aicsd.errors import UserError
from aicsd.methods import Recipe
from aicsd.models import Segmenter, resize
from aicsd.teacher import Teacher
from aicsd.terminal import progress_bar


def check_recipe(recipe: Recipe, top_k: int) -> None:
    """Refuse a method that compares more than a cache keeps.

    Raises:
        UserError: a term on features, one that reads padding, or, with ``top_k``, one that needs
            every logit.
    """
    cure = "leave teacher_cache out, or choose another method"
    recipe.require("logits", "teacher_cache holds logits", cure)
    for name, term in recipe.active.items():
        reads_padding = "valid" not in term.contract.inputs
        if term.needs_teacher and (reads_padding or term.options.get("numerics") == "released"):
            raise UserError(
                f"teacher_cache holds nothing about padding, and term {name!r} compares it too: "
                "leave teacher_cache out"
            )
    if top_k:
        who = f"the {top_k} largest of a pixel"
        recipe.require("probabilities", who, "leave teacher_cache_top_k out")


def fingerprint(model: Segmenter) -> str:
    """Digest of all that decides about a network's logits: tensors, structure, input, classes."""
    structure = model.architecture or repr(model.net)
    facts = (structure, model.classes.names, model.input_mean, model.input_std)
    digest = sha256(json.dumps(facts).encode())
    for name, tensor in model.net.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class TeacherCache:
    """A cache that a run asks for.

    Args:
        folder: of the cache.
        top_k: how many of the largest logits of a cell to keep; 0 keeps all.
    """

    folder: Path
    top_k: int

    def teach(self, dataset: SegDataset, teacher: Teacher, workers: int) -> Taught:
        """``dataset`` with the teacher's logits, which are computed as far as they are missing.

        Several processes may ask at once: one computes, the others wait for it.

        Args:
            dataset: the training images.
            teacher: on the device that is to compute.
            workers: processes that load images.

        Raises:
            UserError: a cache of another teacher or other data, a damaged one, a full disk.
        """
        identity, classes = fingerprint(teacher.model), dataset.classes.names
        index = self._read(identity, classes)
        if index is None or not index.complete:
            sizes = tuple(image_size(dataset, number) for number in range(len(dataset)))
            names = tuple(dataset.names)
            contents = Contents(identity, classes, self.top_k, names, sizes)
            self._require_space(contents)
            with _alone(self.folder):
                index = self._read(identity, classes)  # perhaps somebody else was here
                if index is None or not index.complete:
                    index = self._build(contents, index, dataset, teacher, workers)
        require_sound(self.folder, index)
        return Taught(dataset, self.folder, index)

    def _read(self, identity: str, classes: tuple[str, ...]) -> Index | None:
        """The cache as it is now; one that belongs to something else is refused."""
        index = read_index(self.folder)
        if index is None:
            return None
        held = index.contents
        for what, is_same in (
            ("another teacher", held.teacher == identity),
            (f"other classes ({', '.join(held.classes)})", held.classes == classes),
            (f"teacher_cache_top_k {held.top_k}, not {self.top_k}", held.top_k == self.top_k),
        ):
            if not is_same:
                raise UserError(f"teacher_cache {self.folder} is of {what}; {CHOOSE}")
        return index

    def _require_space(self, contents: Contents) -> None:
        path = self.folder / LOGITS_FILE
        done = path.stat().st_size if path.is_file() else 0
        missing = contents.offsets()[-1] - done
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
        contents: Contents,
        begun: Index | None,
        dataset: SegDataset,
        teacher: Teacher,
        workers: int,
    ) -> Index:
        """Compute what is missing, image by image; what is done stays, whatever happens."""
        if begun is not None and begun.contents != contents:
            raise UserError(f"teacher_cache {self.folder} was begun with other data; {CHOOSE}")
        done: list[Checks] = []
        if begun is not None:
            sound = zip(begun.checks, sound_maps(self.folder, begun), strict=True)
            done = [checks for checks, _ in takewhile(lambda pair: pair[1], sound)]
        offsets, count = contents.offsets(), len(dataset)
        held = f", {len(done)} of them done" if done else ""
        print(
            f"teacher cache: {count} images{held}, {_size(offsets[-1])} in {self.folder}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        lines = [json.dumps(checks) + "\n" for checks in done]
        text = "".join([first_line(contents), *lines])  # the lines of a begun index are the same
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
                if sample.image.shape[:2] != contents.sizes[number]:
                    raise UserError(f"image {dataset.names[number]!r} has changed its size")
                stored = encode(_look(teacher, sample.image), self.top_k)
                maps.write(stored)
                maps.flush()  # before the line that says that it is there
                done.append(Checks(checksum(sample.image), zlib.crc32(stored)))
                line = json.dumps(done[-1]) + "\n"
                text += line
                index.write(line.encode())
                index.flush()
                bar.update(task, completed=number + 1)
            index.write(last_line(text.encode()).encode())
        return Index(contents, done, complete=True)


def _look(teacher: Teacher, image: UInt8Array) -> Tensor:
    """(H, W, 3) uint8 -> (C, h, w) logits on the CPU, at the stride of the cache."""
    # copied, since generated images are read-only, which torch warns of
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    logits = teacher(pixels.to(teacher.model.mean.device)).logits
    height, width = pixels.shape[-2:]
    return resize(logits, cells_of((height, width)))[0].cpu()


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
