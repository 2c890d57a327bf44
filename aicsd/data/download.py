"""Files from the web: continued where they were cut off, and compared with their checksum."""

from __future__ import annotations

import hashlib
import http.client
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from aicsd.errors import UserError

Progress = Callable[[str, int, int | None], None]
"""Gets what is being done, and the bytes done and in all (None: unknown)."""
CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds of silence after which a connection counts as cut."""
TRIES = 5
"""Connection attempts before the command ends with an error."""


class _CutError(Exception):
    """The connection ended before the file did."""


def download(
    url: str, path: Path, md5: str | None = None, progress: Progress | None = None
) -> None:
    """Fetch ``url`` to ``path``, which is either whole or absent.

    What has come so far is kept in ``NAME.part``; a further call continues it if the server can,
    and starts again if it cannot.

    Raises:
        UserError: no connection, an answer other than the file, a disk that cannot be written, or
            a wrong checksum (then the file is removed).
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            try:
                _fetch(url, part, progress)
                break
            except _CutError:
                continue
        else:
            raise UserError(
                f"{url}: the connection was interrupted {TRIES} times; {part} keeps the received "
                "part; run the command again to continue"
            )
        try:
            check_md5(part, md5)
        except UserError as error:
            part.unlink()
            raise UserError(f"{url}: {error}; it was removed, run the command again") from error
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def check_md5(path: Path, expected: str | None) -> None:
    """Refuse a file with another MD5 checksum than ``expected``; None accepts any."""
    if expected is None:
        return
    with path.open("rb") as file:
        # the owners publish no better checksum
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise UserError(f"{path} has MD5 {found}, not {expected}: it is damaged or another file")


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Bring ``part`` to its full length with one connection, or raise ``_CutError``."""
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have) as answer:
        begin, total = _span(answer)
        if answer.status == 416 and total == have:
            return
        if begin not in (0, have):  # not a usable part of the file
            part.unlink(missing_ok=True)
            raise _CutError
        done = begin
        with part.open("ab" if begin else "wb") as file:
            for chunk in _chunks(answer):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(f"downloading {part.stem}", done, total)
    if total is not None and done < total:
        raise _CutError


def _open(url: str, have: int) -> Any:
    headers = {"User-Agent": "aicsd", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:
            return error
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except URLError as error:
        raise UserError(f"{url} cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError from error


def _span(answer: Any) -> tuple[int, int | None]:
    """First byte of what the server sends, -1 if it sends nothing, and length of the file."""
    if answer.status == 200:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length else None
    content = answer.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", content)
    if span is None:
        return -1, None
    return int(span[1] or -1), int(span[2]) if span[2] != "*" else None


def _chunks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _CutError from error
        if not chunk:
            return
        yield chunk
