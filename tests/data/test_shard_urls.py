"""Shards from a web server: whole copies of what is there, one line about what is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCli, write_folder
from download_server import Server, addresses, listed, serve_shards, serving
from tiny_runs import FIT_FLAGS, NO_REPORT, aicsd, model_flags, same_weights

from aicsd.data import open_dataset
from aicsd.data.download import TRIES


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def shards(tmp_path: Path, server: Server) -> Path:
    return serve_shards(write_folder(tmp_path / "data"), server)


def test_a_training_is_that_of_local_shards(
    shards: Path, server: Server, tmp_path: Path, run_cli: RunCli
) -> None:
    """Two tars break off in the middle; a second call asks for nothing."""
    server.cuts = {"train-000001.tar": [5000, 100], "val-000000.tar": [700]}
    root = listed(tmp_path / "root", shards, **addresses(server))
    code, out, error = run_cli("data", "prepare", "shards", "--root", root)
    assert (code, out.count("\n")) == (0, 1), error
    assert f"has its images: 8 of train, 4 of val. Use it with: --data.root {root}" in out
    copies = {path.name: path.read_bytes() for path in root.iterdir() if path.suffix != ".urls"}
    assert copies == {**server.files, "classes.txt": (shards / "classes.txt").read_bytes()}
    assert sorted(server.named) == sorted(
        [*server.files, "train-000001.tar", "train-000001.tar", "val-000000.tar"]
    )
    server.named.clear()
    assert run_cli("data", "prepare", "shards", "--root", root)[0] == 0
    assert not server.named
    flags = [
        "train",
        "--data.batch_size",
        "4",
        *FIT_FLAGS,
        *model_flags("model"),
        "--epochs",
        "1",
        *NO_REPORT,
    ]
    for name, place in (("a", shards), ("b", root)):
        aicsd(*flags, "--data.root", place, "--run", tmp_path / name)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_tars_of_other_names_belong_to_the_split_of_their_list(
    shards: Path, server: Server, tmp_path: Path, run_cli: RunCli
) -> None:
    server.files = {
        f"x{number}.tar": (shards / f"train-00000{number}.tar").read_bytes() for number in range(3)
    }
    root = listed(tmp_path / "root", shards, train=f"{server.url}/x{{0..2}}.tar")
    assert run_cli("data", "prepare", "shards", "--root", root)[0] == 0
    wanted = open_dataset("shards", str(shards), "train").names
    assert open_dataset("shards", str(root), "train").names == wanted
    assert (root / "train-x0.tar").is_file()


@pytest.mark.parametrize("silence", [0.0, 30.0])
def test_a_server_that_never_sends_all(
    shards: Path,
    server: Server,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    silence: float,
) -> None:
    """Cut at once or silent: one line after some tries, and a later call finishes."""
    monkeypatch.setattr("aicsd.data.download.TIMEOUT", 0.3)
    server.cuts, server.silence = {"train-000001.tar": [100] * TRIES}, silence
    root = listed(tmp_path / "root", shards, train=addresses(server)["train"])
    begin = time.monotonic()
    code, out, error = run_cli("data", "prepare", "shards", "--root", root)
    assert time.monotonic() - begin < 20
    assert (code, out) == (2, "")
    assert "train-000001.tar: the connection was interrupted 5 times" in error.splitlines()[-1]
    assert server.named.count("train-000001.tar") == TRIES
    assert {path.name for path in root.glob("*.tar")} == {"train-000000.tar"}
    code, out, error = run_cli("data", "prepare", "shards", "--root", root)
    assert code == 0, error
    assert (root / "train-000001.tar").read_bytes() == server.files["train-000001.tar"]
    assert not list(root.glob("*.part"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{url}/train-{0..1}.tar", "train-0.tar: the server answers 404"),
        ("http://127.0.0.1:9/train-0.tar", "127.0.0.1:9/train-0.tar cannot be reached"),
        ("s3://bucket/train-0.tar", "s3://bucket/train-0.tar is no address of a tar; it begins"),
        ("file:///etc/train-0.tar", "is no address of a tar"),
        ("{url}/train-0.tar.gz", "is no address of a tar"),
        ("http://[::1/train-0.tar", "is no address: "),
        ("{url}/a/x.tar\n{url}/b/x.tar", "/b/x.tar are both train-x.tar here"),
        ("{url}/train-{5..2}.tar", "{5..2} is no range from a number to a larger one"),
        ("{url}/{0..999}{0..999}.tar", "names more than 1000 tars"),
        ("{url}/{0..999999999}.tar", "is no range"),
        ("# nothing", "train.urls is empty"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    server: Server,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: str,
) -> None:
    monkeypatch.setattr("aicsd.data.shard_urls.MAX_SHARDS", 1000)
    root = tmp_path / "root"
    root.mkdir()
    (root / "train.urls").write_text(text.replace("{url}", server.url))
    code, out, error = run_cli("data", "prepare", "shards", "--root", root)
    assert (code, out) == (2, "")
    assert words in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("aicsd: error: ")
    assert not list(root.glob("*.tar"))


def test_no_list(tmp_path: Path, run_cli: RunCli) -> None:
    code, _, error = run_cli("data", "prepare", "shards", "--root", tmp_path)
    assert code == 2
    assert "no train.urls in" in error


def test_a_page_in_place_of_a_tar(server: Server, tmp_path: Path, run_cli: RunCli) -> None:
    server.files["train-0.tar"] = b"<html>please sign in</html>"
    root = tmp_path / "root"
    root.mkdir()
    (root / "train.urls").write_text(f"{server.url}/train-0.tar")
    code, _, error = run_cli("data", "prepare", "shards", "--root", root)
    assert code == 2
    assert "train-0.tar is not an uncompressed tar file, or is damaged" in error.splitlines()[-1]
