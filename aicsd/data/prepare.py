"""Datasets from their owners: downloaded where that is allowed, unpacked, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aicsd.data.archives import unpack
from aicsd.data.check import check_dataset
from aicsd.data.download import Progress, check_md5, download
from aicsd.data.entry import Download
from aicsd.data.open import DATASETS
from aicsd.errors import UserError, suggest

DOWNLOADS: dict[str, Download] = {
    name: download for entry in DATASETS.values() for name, download in entry.downloads.items()
}
"""Downloadable datasets by name."""
LISTED = {name: entry.fetch for name, entry in DATASETS.items() if entry.fetch is not None}
"""Datasets whose root names their source."""


def _problems(root: Path, wanted: Download) -> list[str]:
    found: list[str] = []
    for split, dataset in wanted.splits(root).items():
        notes = (f"{root}, split {split}: {note}" for note in dataset.notes)
        found += [*check_dataset(dataset), *notes]
    return found


def prepare(
    name: str,
    root: Path,
    progress: Progress | None = None,
    downloads: Mapping[str, Download] = DOWNLOADS,
) -> str:
    """Bring dataset ``name`` below ``root``; what is there already is only checked.

    An archive that lies in ``root`` is used instead of a download. One that can be downloaded
    again is removed when all is sound; one that was fetched by hand is left alone.

    Args:
        name: which one.
        root: folder that gets it; made if it is not there.
        progress: called with what is being done, and the bytes done and in all (None: unknown).
        downloads: where datasets come from.

    Returns:
        The next step: how to use the data, or what to fetch by hand.

    Raises:
        UserError: a failed or damaged download, an archive that cannot be used, or a tree in which
            something is missing.
    """
    if name in LISTED:
        opened = {split: DATASETS[name].open(root, split) for split in LISTED[name](root, progress)}
        counts = ", ".join(f"{len(dataset)} of {split}" for split, dataset in opened.items())
        return f"{name} in {root} has its images: {counts}. Use it with: --data.root {root}"
    if name not in downloads:
        raise UserError(f"unknown dataset {name!r}{suggest(name, [*downloads, *LISTED])}")
    wanted = downloads[name]
    unpacked = []
    for archive in wanted.archives:
        path = root / archive.name
        if archive.present(root):
            continue
        if path.is_file():
            check_md5(path, archive.md5)
        elif archive.url is not None:
            download(archive.url, path, archive.md5, progress)
        else:
            continue
        unpack(path, archive.inside, root / archive.places[0], progress)
        unpacked.append(archive)
    absent = [archive.name for archive in wanted.archives if not archive.present(root)]
    if absent:
        return wanted.by_hand.format(
            archives=" and ".join(absent), names=" ".join(absent), root=root
        )
    problems = _problems(root, wanted)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise UserError(
            f"{name} in {root} is not complete: {problems[0]}{more}; remove its folder to fetch it "
            "anew"
        )
    for archive in unpacked:
        if archive.url is not None:
            (root / archive.name).unlink(missing_ok=True)
    checksum = all(archive.md5 for archive in unpacked)
    how = "" if checksum else " (it has no published checksum; the files themselves were checked)"
    return f"{name} is complete{how}. Use it with: {wanted.usage.format(root=root)}"
