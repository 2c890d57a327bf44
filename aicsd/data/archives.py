"""Archives whose members may not leave the folder that they are unpacked into."""

from __future__ import annotations

import gzip
import lzma
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from aicsd.data.download import Progress
from aicsd.errors import UserError, one_line

LONGEST_LINK = 4096
"""Bytes of a link's target that are read."""


class Member(NamedTuple):
    """A file or link of an archive."""

    name: str
    open: Callable[[], IO[bytes]]
    link: str | None = None
    """Target of a link, from the top of the archive."""


def unpack(archive: Path, inside: str, place: Path, progress: Progress | None = None) -> None:
    """Unpack folder ``inside`` of a tar or zip file to ``place``, which is whole or absent.

    Only regular files are written, so that no link can lead a later member astray; a link that
    stays inside the archive is left out.

    Raises:
        UserError: a damaged archive, one without ``inside``, or one with an absolute name, a name
            with ``..``, a link that leads outside, or a device.
    """
    temporary = place.with_name(f".{place.name}.unpacking")
    total = archive.stat().st_size
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        temporary.mkdir(parents=True)
        with archive.open("rb") as file:
            for member in _members(archive, file):
                _refuse_escape(archive, member)
                path = PurePosixPath(member.name)
                if member.link is None and path.is_relative_to(inside):
                    _write(member, temporary / path.relative_to(inside))
                if progress is not None:
                    progress(f"unpacking {archive.name}", file.tell(), total)
        if not any(temporary.iterdir()):
            raise UserError(f"{archive} holds no folder {inside}; remove it and run again")
        temporary.replace(place)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        ValueError,
        NotImplementedError,
        MemoryError,
        IndexError,
        OverflowError,
        struct.error,
    ) as error:
        if isinstance(error, UserError):
            raise
        reason = one_line(error, 500)
        raise UserError(
            f"{archive} cannot be unpacked: {reason}; remove it and run again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive: Path, file: IO[bytes]) -> Iterator[Member]:
    if zipfile.is_zipfile(file):
        yield from _zip_members(file)
    else:
        file.seek(0)
        yield from _tar_members(archive, file)


def _zip_members(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as opened:
        for entry in opened.infolist():
            if entry.filename.endswith("/") or not entry.filename:
                continue
            link = None
            if stat.S_ISLNK(entry.external_attr >> 16):
                with opened.open(entry) as content:  # longer text is not a path
                    target = content.read(LONGEST_LINK).decode("utf-8", "replace")
                link = posixpath.join(posixpath.dirname(entry.filename), target)
            yield Member(entry.filename, partial(opened.open, entry), link)


def _tar_members(archive: Path, file: IO[bytes]) -> Iterator[Member]:
    with tarfile.open(fileobj=file) as opened:
        for entry in opened:
            link = None
            if entry.isdir():
                continue
            if entry.issym():
                link = posixpath.join(posixpath.dirname(entry.name), entry.linkname)
            elif entry.islnk():
                link = entry.linkname
            elif not entry.isreg():
                raise UserError(f"{archive} holds {entry.name}, which is no file; do not use it")
            yield Member(entry.name, partial(_extract, opened, entry), link)
        while opened.fileobj is not None and opened.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the end, which lies behind that of the tar file


def _extract(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(entry)
    assert content is not None  # a regular file has one
    return content


def _refuse_escape(archive: Path, member: Member) -> None:
    name = member.name.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
        raise UserError(f"{archive} holds {member.name!r}, which leads outside; do not use it")
    if member.link is not None:
        target = posixpath.normpath(member.link.replace("\\", "/"))
        if target.startswith("/") or target.split("/")[0] == ".." or re.match("[A-Za-z]:", target):
            raise UserError(
                f"{archive} holds the link {member.name!r}, which leads outside; do not use it"
            )


def _write(member: Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as content, path.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
