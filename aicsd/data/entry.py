"""Descriptor of a dataset: layout, classes, counts, usual size, downloads, server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aicsd.data.download import Progress
from aicsd.data.file_dataset import FileDataset
from aicsd.data.protocol import Classes, SegDataset
from aicsd.images import Color


class Server(NamedTuple):
    """Archive that the benchmark server of a dataset expects."""

    stored_ids: tuple[int, ...]
    """Class id -> the id in the files."""
    palette: tuple[Color, ...] | None
    """Class colours that the PNGs carry; None: they are grey."""
    suffixes: tuple[str, ...]
    """Ends of the archive's name."""
    place: Callable[[Path, str], str]
    """Image file and split -> name of its prediction in the archive."""


@dataclass(frozen=True)
class Archive:
    """A file to download, and the folder of it to keep.

    Args:
        name: its file name; below the root, before it is unpacked.
        inside: the folder of it to keep.
        places: where that folder goes below the root, and after that what else shows that it is
            there already.
        url: its address; None: the owners require an account.
        md5: its checksum; None: it has no fixed one.
    """

    name: str
    inside: str
    places: tuple[str, ...]
    url: str | None = None
    md5: str | None = None

    def present(self, root: Path) -> bool:
        return any((root / place).exists() for place in self.places)


@dataclass(frozen=True)
class Download:
    """Download of a dataset into a root.

    Args:
        archives: the files that it consists of.
        splits: opens every split of the tree below the root, to check it, by its name.
        usage: flags that use it; ``{root}`` is the root.
        by_hand: instructions for archives without an address; ``{archives}``, ``{names}`` and
            ``{root}`` are filled in.
    """

    archives: tuple[Archive, ...]
    splits: Callable[[Path], Mapping[str, FileDataset]]
    usage: str
    by_hand: str = ""


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset.

    Args:
        open: opens a split: ``root`` and ``split``, and by keyword the options of the dataset;
            without ``root`` if there is no layout.
        layout: the files that the root must hold; "": the dataset needs no root.
        images: lists the images of a split that needs no masks; None: only those of ``open``.
        folder: the folder of a root that is another file.
        found: whether a folder has this layout; None: it cannot be recognised.
        classes: names and colours, where they do not depend on the root.
        counts: official number of images of the splits.
        usual_size: width and height of most images.
        downloads: downloads of ``aicsd data prepare`` by name.
        fetch: brings below a root what lists in it name, and returns the splits; None: it has none.
        server: the benchmark server that evaluates predictions.
    """

    open: Callable[..., SegDataset]
    layout: str = ""
    images: Callable[..., list[Path]] | None = None
    folder: Callable[[Path], Path] = lambda root: root
    found: Callable[[Path], bool] | None = None
    classes: Classes | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    usual_size: tuple[int, int] | None = None
    downloads: Mapping[str, Download] = field(default_factory=dict)
    fetch: Callable[[Path, Progress | None], list[str]] | None = None
    server: Server | None = None
