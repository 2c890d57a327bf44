"""The files of a source, none of which is read from outside it."""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from aicsd.errors import UserError, one_line
from aicsd.files import read_text
from aicsd.images import IMAGE_SUFFIXES

MAX_FILES = 5_000_000
MAX_TEXT = 2 << 30
"""Bytes of an annotation file; the largest public ones have half of that."""
SNIFFED_FILES = 50
"""JSON files that are read to recognise a format."""
_CHUNK = 1 << 20
_JSON_KEYS = (
    "images",
    "annotations",
    "categories",
    "segmentation",
    "segments_info",
    "shapes",
    "imagePath",
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}


class OutsideError(Exception):
    """A path leads out of the source: by ``..``, as an absolute path, or by a link."""

    reason = "its path leads out of the source"


class Tree:
    """Every file below a folder, by its path in it with ``/``.

    Hidden files and folders are left alone; links to folders are not followed.

    Raises:
        UserError: no such folder, or more files than a data set has.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            hint = "; unpack it first" if root.is_file() else ""
            raise UserError(f"no folder {root}{hint}")
        self.root = root
        self._real = root.resolve()
        self.links: list[str] = []
        """Links that are left alone: to folders, and to files outside."""
        self.files = sorted(self._walk())
        self.by_base: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            self.by_base[name.rpartition("/")[2]].append(name)
        self._keys: dict[str, frozenset[str]] = {}

    def _walk(self) -> Iterator[str]:
        count = 0
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            below = Path(folder).relative_to(self.root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            links = [name for name in folders if Path(folder, name).is_symlink()]
            self.links += [f"{prefix}{name}/" for name in links]
            for name in files:
                count += 1
                if count > MAX_FILES:
                    raise UserError(f"{self.root} holds more than {MAX_FILES} files")
                if name.startswith("."):
                    continue
                path = Path(folder, name)
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind) and not self._is_inside(path):
                    self.links.append(f"{prefix}{name}")
                elif path.is_file():  # not a pipe, which would be waited for
                    yield f"{prefix}{name}"

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.resolve(strict=True).is_relative_to(self._real)
        except (OSError, RuntimeError):  # a link to nowhere, or a ring of links
            return False

    def with_suffix(self, *suffixes: str, below: str = "") -> list[str]:
        """Files whose names end so, in any spelling, in or below a folder."""
        prefix = f"{below}/" if below else ""
        return [f for f in self.files if f.startswith(prefix) and f.lower().endswith(suffixes)]

    def images(self, below: str = "") -> list[str]:
        """Image files in or below a folder."""
        return self.with_suffix(*IMAGE_SUFFIXES, below=below)

    def has_folder(self, name: str) -> bool:
        """Whether files lie below the folder ``name``."""
        return any(file.startswith(f"{name}/") for file in self.files)

    def path(self, name: str) -> Path:
        """A file, by its path in the source.

        Raises:
            FileNotFoundError: there is none.
            OutsideError: it leads outside.
        """
        name = posixpath.normpath(name)
        if name.startswith(("/", "../")) or name == "..":
            raise OutsideError(name)
        path = self.root / name
        if not os.path.isfile(path):  # noqa: PTH113 (False, too, for a name that no disk takes)
            raise FileNotFoundError(name)
        if not self._is_inside(path):
            raise OutsideError(name)
        return path

    def find(self, name: str, folders: Iterable[str], hints: Iterable[str] = ()) -> str:
        """Path in the source of the file that an annotation calls ``name``.

        It is searched at that path in each of the folders, then by its last part alone among all
        files; ``hints`` are names of folders, one of which must be in the path if several match.

        Raises:
            FileNotFoundError: there is none, or several and no hint decides.
            OutsideError: it leads outside.
        """
        words = name.replace("\\", "/")
        outside: OutsideError | None = None
        for folder in folders:
            place = f"{folder}/{words}" if folder else words
            try:
                self.path(place)
            except FileNotFoundError:
                continue
            except OutsideError as error:
                outside = error
            else:
                return posixpath.normpath(place)
        found = self.by_base.get(words.rpartition("/")[2], [])
        if len(found) > 1:
            wanted = set(hints)
            found = [f for f in found if wanted & set(f.split("/")[:-1])]
        if len(found) == 1:
            self.path(found[0])
            return found[0]
        raise outside or FileNotFoundError(name)

    def text(self, name: str) -> str:
        """A UTF-8 text file.

        Raises:
            UserError: it cannot be read, or is larger than annotations are.
        """
        path = self._checked(name)
        if path.stat().st_size > MAX_TEXT:
            raise UserError(f"{path} is larger than {MAX_TEXT >> 30} GiB")
        return read_text(path)

    def json(self, name: str) -> Any:
        """The content of a JSON file; UserError as :meth:`text`, and for broken JSON."""
        try:
            return json.loads(self.text(name))
        except RecursionError as error:
            raise UserError(f"{self.root / name} is nested too deeply for an annotation") from error
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.root / name} is not a complete JSON file: {error}") from error

    def yaml(self, name: str) -> Any:
        """The content of a YAML file, as data only; UserError as :meth:`text`."""
        try:
            return yaml.safe_load(self.text(name))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = one_line(error)
            raise UserError(f"{self.root / name} cannot be read as YAML: {reason}") from error

    def json_files(self, *keys: str, count: int | None = SNIFFED_FILES) -> list[str]:
        """The JSON files, among the first ``count``, that hold all these keys; none is parsed."""
        return [f for f in self.with_suffix(".json")[:count] if self.json_keys(f) >= set(keys)]

    def json_keys(self, name: str) -> frozenset[str]:
        """Which of the keys that formats are known by a JSON file holds, without parsing it."""
        if name not in self._keys:
            self._keys[name] = frozenset(self._scan(name))
        return self._keys[name]

    def _scan(self, name: str) -> set[str]:
        found: set[str] = set()
        overlap = b""
        try:
            with self._checked(name).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    text = overlap + chunk
                    found |= {key for key in _JSON_KEYS if f'"{key}"'.encode() in text}
                    overlap = text[-64:]
        except (OSError, UserError):
            return set()
        return found

    def _checked(self, name: str) -> Path:
        try:
            return self.path(name)
        except OutsideError as error:
            raise UserError(f"{self.root / name} is a link that leads outside") from error
        except FileNotFoundError as error:
            raise UserError(f"no file at {self.root / name}") from error


def split_of(path: str) -> str | None:
    """train, val, test or unlabelled by a word of the path, its last part first; else None."""
    for part in reversed(PurePosixPath(path).parts):
        for word in re.findall(r"[a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def stem_of(name: str) -> str:
    """A path without the suffix of its last part."""
    return posixpath.splitext(name)[0]


def folder_of(name: str) -> str:
    """The folder that a path lies in; empty at the top of the source."""
    return name.rpartition("/")[0]
