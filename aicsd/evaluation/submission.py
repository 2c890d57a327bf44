"""Predictions as the archives that benchmark servers take."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from aicsd.data import DATASETS
from aicsd.data.entry import Server
from aicsd.data.protocol import Classes
from aicsd.errors import UserError, suggest
from aicsd.files import atomic_path
from aicsd.images import UInt8Array, encode_ids, read_image

ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: equal predictions, equal bytes


def check_submission(name: str, classes: Classes, out: Path) -> Server:
    """The server of dataset ``name``; refuse what it would refuse, before anything is predicted.

    Raises:
        UserError: a dataset without a server, a model of other classes, or an archive with
            another kind of name.
    """
    servers = {key: entry.server for key, entry in DATASETS.items() if entry.server}
    if name not in servers:
        raise UserError(f"dataset {name!r} has no benchmark server{suggest(name, servers)}")
    server, own = servers[name], DATASETS[name].classes
    if own is None or classes.names != own.names:
        raise UserError(
            f"the model was trained on the classes {list(classes.names)}, not on those of {name}"
        )
    if not out.name.endswith(server.suffixes):
        raise UserError(f"out: {out} must end in {' or '.join(server.suffixes)} for {name}")
    return server


def write_submission(
    server: Server,
    images: Sequence[Path],
    split: str,
    predict: Callable[[UInt8Array], UInt8Array],
    out: Path,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Predict every image and write the archive; it is checked before it takes its place.

    Args:
        server: from :func:`check_submission`.
        images: image files of the split, each once.
        split: its name, which is part of VOC's paths.
        predict: (H, W, 3) uint8 RGB -> (H, W) class ids.
        out: the archive.
        advance: called after every image.

    Raises:
        UserError: two images whose predictions would have one name, an image that cannot be read,
            or a prediction that the server would refuse.
    """
    by_name: dict[str, Path] = {}
    for path in images:
        other = by_name.setdefault(server.place(path, split), path)
        if other is not path:
            raise UserError(
                f"{other} and {path} would both become {server.place(path, split)}; the images "
                "of a split need different names"
            )
    table = np.array(server.stored_ids, np.uint8)

    def predictions() -> Iterator[tuple[str, bytes]]:
        for path in images:
            stored: UInt8Array = table[predict(read_image(path))]
            yield (
                server.place(path, split),
                encode_ids(stored, server.palette),
            )
            advance()

    with atomic_path(out) as temporary:
        if ".zip" in server.suffixes:
            _write_zip(temporary, predictions())
        else:
            _write_tar(temporary, predictions())
        check_archive(server, images, split, temporary)


def _write_tar(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _write_zip(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), content)


def _read_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            yield entry.name, b"" if file is None else file.read()


def check_archive(server: Server, images: Sequence[Path], split: str, path: Path) -> None:
    """Refuse an archive that does not hold one right PNG for every image, and nothing else.

    Raises:
        UserError: the first file that is missing, twice there, of another kind or size, or with
            ids that the server does not take.
    """
    waiting = {server.place(image, split): image for image in images}
    allowed = np.isin(np.arange(256), server.stored_ids)
    read = _read_zip if ".zip" in server.suffixes else _read_tar
    for name, content in read(path):
        image = waiting.pop(name, None)
        if image is None:
            raise UserError(f"{path}: {name} is twice there, or belongs to no image")
        with PILImage.open(image) as file:
            size = file.size
        try:
            with PILImage.open(io.BytesIO(content)) as picture:
                kind, found, ids = (picture.format, picture.mode), picture.size, np.array(picture)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{path}: {name} is not a readable image: {error}") from error
        wanted = ("PNG", "P" if server.palette else "L")
        if kind != wanted or found != size:
            raise UserError(
                f"{path}: {name} is {kind[0]} {kind[1]} of {found[0]}x{found[1]}; it must be "
                f"{wanted[0]} {wanted[1]} of {size[0]}x{size[1]}"
            )
        if not allowed[ids].all():
            raise UserError(f"{path}: {name} holds id {ids[~allowed[ids]].flat[0]}")
    if waiting:
        raise UserError(f"{path}: no prediction {min(waiting)} and {len(waiting) - 1} more")
