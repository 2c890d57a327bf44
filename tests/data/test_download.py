"""Downloads that break off, continue, or are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import one_line
from download_server import CONTENT, MD5, Server, names, serving

from aicsd.data.download import TRIES, download


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


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
    server.files["a.tar"], server.cuts = CONTENT, {"a.tar": [1_000_000, 500_000]}
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_cut_connection_starts_again_where_ranges_are_ignored(
    server: Server, tmp_path: Path
) -> None:
    server.files["a.tar"], server.ranges = CONTENT, False
    server.cuts = {"a.tar": [1_000_000]}
    download(f"{server.url}/a.tar", tmp_path / "a.tar", MD5)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_further_call_continues_the_part(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = CONTENT
    server.cuts = {"a.tar": [100_000] * TRIES}
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
