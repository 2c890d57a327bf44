"""Parts of files on a web server, whatever it does to connections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from download_server import Server, serving

from aicsd.data.web_file import WAITS, find_web_file


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("aicsd.data.web_file.WAITS", (0.0,) * len(WAITS))
    with serving() as running:
        yield running


def test_redirects_whose_targets_expire(server: Server) -> None:
    server.files = {"one/a": b"0123456789", "two/a": b"0123456789"}
    server.moved = {"a": f"{server.url}/one/a"}
    file = find_web_file(f"{server.url}/a")
    assert (file.read(2, 3), file.read(9, 1), file.read(0, 0)) == (b"234", b"9", b"")
    assert server.named == ["a", "one/a", "one/a", "one/a"]
    del server.files["one/a"]
    server.moved["a"] = "two/a"
    assert file.read(0, 10) == b"0123456789"
    assert file.url == f"{server.url}/a"


def test_a_server_that_is_busy_for_a_while(server: Server) -> None:
    server.files["a"], server.statuses = b"0123456789", [503, 429]
    assert find_web_file(f"{server.url}/a").length == 10


def test_a_connection_that_breaks_is_continued(server: Server) -> None:
    content = np.random.default_rng(0).bytes(200_000)
    server.files["a"] = content
    file = find_web_file(f"{server.url}/a")
    server.cuts["a"] = [70_000, 0, 1]
    server.asked.clear()
    assert file.read(100, 150_000) == content[100:150_100]
    begins = [int(str(span)[6:].split("-")[0]) for span in server.asked]
    assert begins == [100, 70_100, 70_100, 70_101]
    assert {str(span).split("-")[1] for span in server.asked} == {"150099"}


def test_a_server_that_sends_more_than_it_was_asked_for(server: Server) -> None:
    """Nothing of it is kept, nor taken for the answer to the next request."""
    server.files["a"], server.more = b"0123456789", b"x" * 10_000_000
    file = find_web_file(f"{server.url}/a")
    assert [file.read(place, 2) for place in (0, 4)] == [b"01", b"45"]
