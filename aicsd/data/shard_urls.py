"""Shards from a web server: ``ROOT/train.urls`` names the tars of the split ``train``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from aicsd.data.download import Progress, download
from aicsd.errors import UserError

SUFFIX = ".urls"
RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
"""``{000..012}``, as WebDataset has it."""
MAX_SHARDS = 100_000


def fetch_shards(root: Path, progress: Progress | None = None) -> list[str]:
    """Copy every tar that the lists in ``root`` name into it; one that is there stays.

    Args:
        root: folder with ``SPLIT.urls``: one address a line, in which ``{000..012}`` stands for the
            numbers from 000 to 012; empty lines and lines with ``#`` in front are left out.
        progress: called with what is being done, and the bytes done and in all (None: unknown).

    Returns:
        The splits.

    Raises:
        UserError: no list, an address that is none, two tars of one name, or as
            :func:`aicsd.data.download.download`.
    """
    lists = sorted(root.glob(f"*{SUFFIX}"))
    if not lists:
        raise UserError(
            f"no train{SUFFIX} in {root}: write the addresses of its tars into it, one a line"
        )
    wanted = {path: url for listed in lists for path, url in _tars(listed).items()}
    for path, url in wanted.items():
        if not path.is_file():
            download(url, path, progress=progress)
    return [listed.stem for listed in lists]


def listed_tars(root: Path, split: str) -> dict[Path, str]:
    """Addresses of the tars of a split, by where their copies would be; none without a list.

    Raises:
        UserError: as :func:`fetch_shards`, but for what it downloads.
    """
    listed = root / f"{split}{SUFFIX}"
    return _tars(listed) if listed.is_file() else {}


def _tars(listed: Path) -> dict[Path, str]:
    """Tars beside a list, with their addresses."""
    found: dict[Path, str] = {}
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed} cannot be read: {error}") from error
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        for url in _expanded(text, listed):
            path = _place(url, listed)
            if path in found:
                raise UserError(f"{listed}: {found[path]} and {url} are both {path.name} here")
            found[path] = url
            if len(found) > MAX_SHARDS:
                raise UserError(f"{listed} names more than {MAX_SHARDS} tars")
    if not found:
        raise UserError(f"{listed} is empty: write the addresses of its tars into it, one a line")
    return found


def _expanded(text: str, listed: Path) -> Iterator[str]:
    """The addresses that a line stands for."""
    span = RANGE.search(text)
    if span is None:
        yield text
        return
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"{listed}: {span[0]} is no range from a number to a larger one")
    before, after = text[: span.start()], text[span.end() :]
    for number in range(first, last + 1):
        yield from _expanded(f"{before}{number:0{len(span[1])}}{after}", listed)


def _place(url: str, listed: Path) -> Path:
    """File name for the tar of an address, which begins with the split."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{listed}: {url} is no address: {error}") from error
    name = PurePosixPath(unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or not parts.netloc or not name.endswith(".tar"):
        raise UserError(
            f"{listed}: {url} is no address of a tar; it begins with http:// or https:// and ends "
            "with .tar (other stores: copy them with their own program, or mount them)"
        )
    split = listed.stem
    own = name == f"{split}.tar" or name.startswith(f"{split}-")
    return listed.with_name(name if own else f"{split}-{name}")
