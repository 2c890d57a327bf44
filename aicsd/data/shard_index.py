"""Places of the members of tars, on this disk or on a web server."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aicsd.data.web_file import WebFile, find_web_file, shown
from aicsd.errors import UserError, one_line
from aicsd.files import write_text
from aicsd.images import MAX_BYTES

INDEX = ".index"
"""Suffix to the name that the copy of a tar would have."""
FORMAT = 1
BLOCK = 1 << 19
"""Bytes of a request for headers. Small members come with them; of larger ones, the content is
skipped."""
MAX_MEMBERS = 4_000_000
THREADS = 8
"""Tars whose headers are read at once."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


class RemoteTar(NamedTuple):
    """A tar on a web server."""

    file: WebFile
    members: list[Member]


def members_of(tar: Path) -> list[Member]:
    """The files in a tar on this disk.

    Raises:
        UserError: no uncompressed tar, or a damaged one.
    """
    # only members of an uncompressed tar have a place
    with _reading(str(tar)), tarfile.open(tar, "r:") as opened:
        return _members(opened)


def open_remote(tars: Mapping[Path, str]) -> dict[Path, RemoteTar]:
    """The files in tars on web servers.

    The headers of a tar are read once and kept in a file ``NAME.tar.index``. After that, one
    request a tar finds out whether it is still the same.

    Args:
        tars: addresses, by where their copies would be.

    Raises:
        UserError: a server without a response or without ranges, a tar that has changed, no
            uncompressed tar, a damaged one, or an index that cannot be written.
    """
    from aicsd.terminal import progress_bar  # help pages load this module, and need no rich

    order = list(tars)
    random.Random().shuffle(order)  # processes that start together begin with different tars
    found: dict[Path, RemoteTar] = {}
    stop = threading.Event()
    pool = ThreadPoolExecutor(THREADS)
    try:
        with progress_bar() as bar:
            task = bar.add_task("tars on the web", total=len(order), note="")
            for path, tar in zip(
                order, pool.map(lambda path: _open(path, tars[path], stop), order), strict=True
            ):
                found[path] = tar
                bar.advance(task)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return found


def _open(path: Path, url: str, stop: threading.Event) -> RemoteTar:
    file = find_web_file(url)
    place = path.with_name(path.name + INDEX)
    members = kept_members(place, file)
    if members is None:
        headers = _Headers(file, stop)
        with _reading(str(file)), tarfile.open(fileobj=headers, mode="r:") as opened:
            members = _members(opened)
        text = _text(file, members)
        try:
            write_text(place, f"{_digest(text)}\n{text}")
        except UserError:
            if not place.is_file():  # otherwise another machine has just written it
                raise
    return RemoteTar(file, members)


def _text(file: WebFile, members: list[Member]) -> str:
    content = {
        "format": FORMAT,
        "url": shown(file.url),
        "length": file.length,
        "version": file.version,
        "members": members,
    }
    return json.dumps(content, separators=(",", ":"))


def kept_members(place: Path, file: WebFile) -> list[Member] | None:
    """Members of a tar by its index; None without one, for a damaged one or that of another tar.

    Args:
        place: path of the index.
        file: the tar.

    Raises:
        UserError: the tar has changed.
    """
    try:
        digest, text = place.read_text(encoding="utf-8").split("\n", 1)
        if digest != _digest(text):
            return None
        content = json.loads(text)
        members = [Member(*member) for member in content["members"]]
        length, version = content["length"], content["version"]
        if (content["format"], content["url"]) != (FORMAT, shown(file.url)):
            return None
        if not all(_is_sound(member, length) for member in members):
            return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if (length, version) != (file.length, file.version):
        raise UserError(
            f"{file} has changed since {place} was made; bring back what it was, or delete {place} "
            "to read it as it is now"
        )
    return members


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_sound(member: Member, length: int) -> bool:
    _, offset, size = member
    is_typed = tuple(map(type, member)) == (str, int, int)
    return is_typed and 0 <= offset <= length - size and 0 <= size <= MAX_BYTES


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise UserError(
            f"{name} is not an uncompressed tar file, or is damaged: {reason}"
        ) from error


def _members(opened: tarfile.TarFile) -> list[Member]:
    found = []
    for number, entry in enumerate(opened):
        if number == MAX_MEMBERS:
            raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} members")
        if entry.isreg() and not entry.issparse() and 0 <= entry.size <= MAX_BYTES:
            found.append(Member(entry.name, entry.offset_data, entry.size))
        opened.members.clear()  # type: ignore[attr-defined] # every header, kept for extraction
    return found


class _Headers:
    """A tar on a web server as ``tarfile`` reads its headers: by blocks, of which one is kept."""

    def __init__(self, file: WebFile, stop: threading.Event) -> None:
        self._file, self._stop = file, stop
        self._at = self._begin = 0
        self._block = b""

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        end = min(self._at + size, self._file.length)
        if self._stop.is_set():
            raise UserError("stopped")
        if not self._begin <= self._at <= end <= self._begin + len(self._block):
            self._begin = self._at
            wanted = max(0, min(BLOCK, self._file.length - self._at))
            self._block = self._file.read(self._at, wanted)
        data = self._block[self._at - self._begin : end - self._begin]
        self._at += len(data)
        return data

    def write(self, data: bytes) -> int:
        # the type of tarfile's files has it; a tar that is opened to be read is not written
        raise NotImplementedError

    def close(self) -> None: ...
