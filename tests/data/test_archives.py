"""Archives: only the wanted folder, and nothing of one that attacks or is damaged."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from conftest import one_line
from download_server import CONTENT, Members, names, tar_bytes, zip_bytes

from aicsd.data.archives import unpack


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


GOOD = {"top/data/a.txt": b"a", "top/data/deep/er/b.txt": b"b" * 3000, "top/readme": b"r"}


@pytest.mark.parametrize(
    "content",
    [
        tar_bytes(GOOD),
        tar_bytes(GOOD, "w:gz"),
        zip_bytes(GOOD),
        tar_bytes({f"./{name}": content for name, content in GOOD.items()}),
    ],
    ids=["tar", "tgz", "zip", "dot"],
)
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
        "l": special("top/data/l", SYM, "deep"),
        "m": special("top/data/m", SYM, "../readme"),
        "h": special("top/data/h", HARD, "top/data/a.txt"),
        "top/data/l/c.txt": b"c",
    }
    (tmp_path / "archive").write_bytes(tar_bytes({**GOOD, **links}))
    unpack(tmp_path / "archive", "top/data", tmp_path / "put")
    assert names(tmp_path / "put") == ["a.txt", "deep/er/b.txt", "l/c.txt"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        tar_bytes({"top/data/a": CONTENT[:9000]})[:5000],
        tar_bytes({"top/data/a": CONTENT[:9000]}, "w:gz")[:5000],
        flipped(tar_bytes({"top/data/a": CONTENT[:9000]}, "w:gz"), 4000),
        flipped(zip_bytes({"top/data/a": CONTENT[:9000]}), 4000),
        zip_bytes({"top/data/a": CONTENT[:9000]})[:5000],
        b"",
        b"words" * 200,
    ],
    ids=["tar", "tgz", "tgz_flipped", "zip_flipped", "zip", "empty", "text"],
)
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
