"""Shards that stay on a web server: read as those on the disk, by ranges of bytes."""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, one_line, write_folder
from download_server import Server, addresses, listed, serve_shards, serving
from started import Ranks
from tiny_runs import FIT_FLAGS, NO_REPORT, aicsd, model_flags, same_weights, stopping_at

from aicsd.data import SegDataset, open_dataset
from aicsd.data.shard_index import BLOCK, members_of, open_remote
from aicsd.data.web_file import WAITS
from aicsd.errors import UserError

FLAGS = [
    "train",
    "--data.batch_size",
    "4",
    *FIT_FLAGS,
    *model_flags("model"),
    "--epochs",
    "2",
    *NO_REPORT,
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("aicsd.data.web_file.WAITS", (0.0,) * len(WAITS))
    with serving() as running:
        yield running


@pytest.fixture
def shards(tmp_path: Path, server: Server) -> Path:
    return serve_shards(write_folder(tmp_path / "data"), server)


@pytest.fixture
def root(tmp_path: Path, server: Server, shards: Path) -> Path:
    """No tars, but their addresses."""
    return listed(tmp_path / "root", shards, **addresses(server))


def opened(root: Path, split: str = "train") -> SegDataset:
    return open_dataset("auto", str(root), split)


def assert_same(found: SegDataset, wanted: SegDataset) -> None:
    assert found.names == wanted.names
    assert list(found.labelled) == list(wanted.labelled)
    for index in range(len(wanted)):
        assert found.size(index) == wanted.size(index)
        for one, other in zip(found.read(index)[:2], wanted.read(index)[:2], strict=True):
            assert np.array_equal(one, other)


# the same as on the disk


def test_a_training_is_that_of_local_shards(
    shards: Path, root: Path, server: Server, tmp_path: Path, run_cli: RunCli
) -> None:
    """Training with loaders, broken connections and a resume; no tar is copied."""
    server.cuts = {"train-000001.tar": [5000, 100], "val-000000.tar": [700]}
    aicsd(*FLAGS, "--data.root", shards, "--run", tmp_path / "a")
    flags = [*FLAGS, "--data.root", root, "--run", tmp_path / "b", "--data.workers", "2"]
    with stopping_at(3):
        code, _, error = run_cli(*flags)
    assert code == 130, error
    assert "train: 3 tars are read from the web" in error
    assert not any(server.cuts.values())
    server.cuts = {"train-000000.tar": [3000], "train-000002.tar": [3000]}
    aicsd("train", "--run", tmp_path / "b", "--resume", "--data.workers", "1")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not any(server.cuts.values())
    assert not list(root.glob("*.tar"))


def test_two_processes_train_as_on_local_shards(shards: Path, root: Path, tmp_path: Path) -> None:
    for name, place in (("a", shards), ("b", root)):
        command = [*FLAGS, "--devices", "2", "--data.batch_size", "2", "--epochs", "1",
                   "--data.root", str(place), "--run", str(tmp_path / name)]  # fmt: skip
        with Ranks(command, tmp_path / "log" / name) as ranks:
            assert ranks.wait() == [0, 0], ranks.error
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "inputs.json").read_text())["epoch_batches"] == 2


def read_all(dataset: SegDataset, results: multiprocessing.Queue[list[int]]) -> None:
    results.put([int(dataset.read(index).image.sum()) for index in range(len(dataset))])


def test_forked_processes_do_not_share_a_connection(root: Path, shards: Path) -> None:
    dataset, wanted = opened(root), opened(shards)
    dataset.read(0)  # this process has connections now
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=(dataset, results)) for _ in range(3)]
    for process in processes:
        process.start()
    sums = [int(wanted.read(index).image.sum()) for index in range(len(wanted))]
    for _ in processes:
        assert results.get(timeout=60) == sums
    for process in processes:
        process.join()


def test_copies_are_read_in_place_of_what_is_listed(
    root: Path, shards: Path, server: Server
) -> None:
    (root / "train-000001.tar").write_bytes((shards / "train-000001.tar").read_bytes())
    del server.files["train-000001.tar"]
    assert_same(opened(root), opened(shards))


def test_data_check_reads_all_and_a_training_some(
    root: Path,
    shards: Path,
    run_cli: RunCli,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, error = run_cli("data", "check", "--data.root", root)
    assert code == 0, error
    wanted = run_cli("data", "check", "--data.root", shards)[1]
    notes = ["train: note: 3 tars are read from the web", "val: note: 2 tars are read from the web"]
    assert [line for line in out.splitlines() if line not in notes] == wanted.splitlines()
    monkeypatch.setattr("aicsd.data.check.SAMPLED", 3)
    server.asked.clear()
    with stopping_at(1):
        _, _, error = run_cli(*FLAGS, "--data.root", root, "--run", tmp_path / "a")
    assert "train: 3 of 8 samples were checked (aicsd data check reads all)" in error
    # a request a tar, two a sample that is checked, and two a sample of two batches
    assert len(server.asked) <= 5 + 2 * (3 + 3) + 2 * (4 + 4) + 2 * (4 + 4)


# the index


def test_headers_are_read_once(root: Path, shards: Path, server: Server) -> None:
    assert_same(opened(root), opened(shards))
    assert server.connections < len(server.asked) / 3, "connections are kept"
    server.asked.clear()
    dataset = opened(root)
    assert server.asked == ["bytes=0-0"] * 3
    server.asked.clear()
    dataset.read(4)
    places = [place for place in dataset.samples[4] if place is not None]  # type: ignore[attr-defined]
    assert server.asked == [f"bytes={p.offset}-{p.offset + p.size - 1}" for p in places]


def test_the_content_of_large_members_is_skipped(server: Server, tmp_path: Path) -> None:
    """A tar with long names and other headers, of members smaller and larger than a block."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        sizes = [10, 3 * BLOCK, 0, 700, BLOCK, 5 * BLOCK, 1]
        for number, size in enumerate(sizes):
            entry = tarfile.TarInfo(f"{'long/' * 40}{number}é.png")
            entry.size = size
            tar.addfile(entry, io.BytesIO(bytes(size)))
        tar.addfile(tarfile.TarInfo("empty"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "empty"
        tar.addfile(link)
    server.files["a.tar"] = path.read_bytes()
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    place = tmp_path / "a.tar"
    path.rename(tmp_path / "b.tar")
    (found,) = open_remote({place: f"{server.url}/a.tar"}).values()
    assert found.members == wanted == members_of(tmp_path / "b.tar")
    assert len(server.asked) < 12


def test_an_archive_that_has_changed(root: Path, server: Server, run_cli: RunCli) -> None:
    server.versions["train-000001.tar"] = '"1"'
    dataset = opened(root)
    server.versions["train-000001.tar"] = '"2"'
    index = root / "train-000001.tar.index"
    line = one_line(lambda: dataset.read(3))
    assert line == f"{server.url}/train-000001.tar has changed since its headers were read"
    code, _, error = run_cli("data", "check", "--data.root", root)
    assert (code, error.count("\n")) == (2, 1)
    assert f"train-000001.tar has changed since {index} was made; bring back" in error
    server.files["train-000001.tar"] += bytes(512)  # without an ETag, the length tells it
    server.versions.clear()
    assert "has changed" in one_line(lambda: opened(root))
    index.unlink()
    assert len(opened(root)) == 8


def shorten(text: str) -> str:
    return text[:-9]


def change(text: str) -> str:
    return text.replace(",", " ", 1)


def forge(text: str) -> str:
    """A place behind the end of the tar, with a checksum that is right."""
    from hashlib import sha256

    content = json.loads(text.split("\n", 1)[1])
    content["members"][0][1] = 10**9
    forged = json.dumps(content)
    return f"{sha256(forged.encode()).hexdigest()}\n{forged}"


def nothing(text: str) -> str:
    return ""


@pytest.mark.parametrize("damage", [shorten, change, forge, nothing])
def test_a_damaged_index_is_made_again(
    root: Path, shards: Path, damage: Callable[[str], str]
) -> None:
    opened(root)
    index = root / "train-000000.tar.index"
    sound = index.read_text()
    index.write_text(damage(sound))
    assert_same(opened(root), opened(shards))
    assert index.read_text() == sound


def test_the_index_of_another_address_is_made_again(
    root: Path, shards: Path, server: Server
) -> None:
    opened(root)
    server.files = {f"moved/{name}": content for name, content in server.files.items()}
    lines = (root / "train.urls").read_text()
    (root / "train.urls").write_text(lines.replace(server.url, f"{server.url}/moved"))
    assert_same(opened(root), opened(shards))
    # a signature that has been renewed is no other address, and is kept nowhere
    (root / "train.urls").write_text(lines.replace(".tar", ".tar?signature=1"))
    server.files = {name.removeprefix("moved/"): text for name, text in server.files.items()}
    opened(root)
    server.asked.clear()
    (root / "train.urls").write_text(lines.replace(".tar", ".tar?signature=2"))
    opened(root)
    assert server.asked == ["bytes=0-0"] * 3
    assert "signature" not in "".join(path.read_text() for path in root.glob("*.index"))


def test_a_root_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise UserError(f"cannot write {path}: Permission denied")

    monkeypatch.setattr("aicsd.data.shard_index.write_text", refuse)
    assert "index: Permission denied" in one_line(lambda: opened(root))


# servers


def without_ranges(server: Server) -> None:
    server.ranges = False


def gone(server: Server) -> None:
    server.files.clear()


def elsewhere(server: Server) -> None:
    server.moved["a.tar"] = "file:///etc/passwd"


def round_and_round(server: Server) -> None:
    server.moved["a.tar"] = "a.tar"


def another_part(server: Server) -> None:
    server.spans = ["bytes 1-1/10"]


def no_length(server: Server) -> None:
    server.spans = ["bytes 0-0/*"]


def empty(server: Server) -> None:
    server.files["a.tar"] = b""


def always_busy(server: Server) -> None:
    server.statuses = [503] * len(WAITS)


def never_all(server: Server) -> None:
    server.cuts["a.tar"] = [0] * len(WAITS)


def page(server: Server) -> None:
    server.files["a.tar"] = b"<html>please sign in</html>"


def endless_header(server: Server) -> None:
    """A header of 8 GB of text, as a tar announces it."""
    entry = tarfile.TarInfo("a")
    entry.type, entry.size = tarfile.XHDTYPE, 8**11 - 1
    server.files["a.tar"] = entry.tobuf(tarfile.USTAR_FORMAT) + bytes(10_000)


def cut_off(server: Server) -> None:
    server.files["a.tar"] = server.files["train-000000.tar"][:700]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            without_ranges,
            "does not send parts of files (range requests); copy the tars with aicsd "
            "data prepare shards",
        ),
        (gone, "a.tar: the server answers 404 Not Found"),
        (elsewhere, "a.tar leads to no address: redirects go to http:// or https:// only"),
        (round_and_round, "a.tar: the server redirects more than 5 times"),
        (another_part, "a.tar: the server sends other bytes than it was asked for"),
        (no_length, "a.tar: the server sends other bytes than it was asked for"),
        (empty, "a.tar is empty"),
        (always_busy, "a.tar cannot be read (5 tries): the server answers 503"),
        (never_all, "a.tar cannot be read (5 tries): the connection ended after 0 of 1 bytes"),
        (page, "a.tar is not an uncompressed tar file, or is damaged"),
        (endless_header, "a.tar is not an uncompressed tar file, or is damaged"),
        (cut_off, "a.tar is not an uncompressed tar file, or is damaged"),
    ],
)
@pytest.mark.usefixtures("shards")
def test_what_cannot_be_read_is_one_line(
    server: Server, tmp_path: Path, run_cli: RunCli, change: Callable[[Server], None], words: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "classes.txt").write_text("a\nb\nc\n")
    user = server.url.replace("//", "//user:secret@")
    (root / "train.urls").write_text(f"{user}/a.tar?key=secret")
    server.files["a.tar"] = server.files["train-000000.tar"]
    change(server)
    code, out, error = run_cli("data", "check", "--data.root", root, "--data.split", "train")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert words in error
    assert "secret" not in error


def test_a_server_that_is_silent_ends_a_training(
    root: Path, server: Server, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line after the last try, and a resume when it answers again."""
    monkeypatch.setattr("aicsd.data.web_file.TIMEOUT", 0.1)
    flags = [*FLAGS, "--data.check", "false", "--run", tmp_path / "run"]
    with stopping_at(2):
        assert run_cli(*flags, "--data.root", root)[0] == 130
    server.cuts, server.silence = {"train-000000.tar": [9] * 99}, 0.3
    code, _, error = run_cli("train", "--run", tmp_path / "run", "--resume")
    assert code == 2
    assert "train-000000.tar cannot be read (5 tries): timed out" in error.splitlines()[-1]
    server.cuts.clear()
    assert run_cli("train", "--run", tmp_path / "run", "--resume")[0] == 0
