"""Files that are either whole or absent, lock files, and strict reading of YAML and JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from aicsd.errors import UserError, one_line
from aicsd.yaml_file import load_yaml


@contextmanager
def atomic_path(
    path: Path, *, durable: bool = False, previous: Path | None = None
) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` at the end.

    Args:
        path: gets the permissions that the umask gives, whatever library writes it.
        durable: wait until the disk has the content, so that it survives a loss of power.
        previous: where a file that already stands at ``path`` goes.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors writes files that only their owner may read
        if durable:
            _sync(temporary)
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        if durable and os.name == "posix":
            _sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether ``path`` is a file of :func:`atomic_path` that a killed process left behind.

    It may also be one that is being written at this moment.
    """
    return path.is_file() and re.fullmatch(r"\..+\.\d+\.tmp(\..*)?", path.name) is not None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it takes the place of ``path`` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def at_home(path: str | Path) -> str:
    """``~/x`` -> the path in the home folder; no shell has done it in a config or in ``--run=~/x``.

    Without a home folder, and where no ``~`` begins the path, it is left as it is.
    """
    return os.path.expanduser(path)  # noqa: PTH111, which fails without a home folder


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file that is either whole or absent."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is removed at the end; a killed process loses its hold.

    Raises:
        BlockingIOError: another process, or this one, holds it already; its text names it.
        OSError: the file cannot be made.
    """
    place = path.absolute()
    with _GUARD:
        if place in _HELD:
            raise BlockingIOError(f"process {os.getpid()} on {socket.gethostname()}")
        _HELD.add(place)
    try:
        with _locked(path) as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
    finally:
        _HELD.discard(place)


_GUARD = threading.Lock()
_HELD: set[Path] = set()
"""Lock files of this process, which the operating system would let it lock again."""


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    while True:
        with path.open("a+", encoding="utf-8") as file:
            if sys.platform != "win32":
                import fcntl

                try:
                    # not flock, which the loader processes of a killed training would hold on to
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        file.seek(0)
                        raise BlockingIOError(file.read(200) or "another process") from error
                    # the file system has no locks: better without than not at all
            if not _is_at(file, path):
                continue  # the process that held it has just removed it
            file.truncate(0)
            yield file
            return


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: no such file, no YAML, an alias, a key that appears twice, or no mapping.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    return _mapping(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        UserError: no such file, no JSON, or no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return _mapping(path, content)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The mappings in a file of one JSON value a line; an empty list without the file.

    A last line that a killed process left without its end is dropped.

    Raises:
        UserError: another line that holds no mapping.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.split("\n") if line]
        return [_mapping(path, line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        told = error if isinstance(error, UserError) else _unreadable(path, error)
        raise UserError(f"{told}; delete it to continue without it") from error


def _mapping(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is damaged: it must be a mapping of keys")
    return content


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError):
        return UserError(f"{path} cannot be read: {error.strerror or error}")
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}," if mark is not None else ""
    reason = getattr(error, "problem", None) or one_line(error)
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    return UserError(f"{path}{place} is damaged: {reason}")
