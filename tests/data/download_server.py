"""A server of files in this process, and packed files for it."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
from dataset_trees import pack

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """Serves ``files`` on connections that stay open, and ends some of them too early."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    """Name -> its header ETag."""
    moved: dict[str, str] = field(default_factory=dict)
    """Name -> where it is redirected to."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Name -> numbers of bytes of the answers after which connections end."""
    silence: float = 0.0
    """Seconds that an answer hangs before its connection ends too early."""
    more: bytes = b""
    """Bytes that follow every response."""
    spans: list[str] = field(default_factory=list)
    """Headers Content-Range in place of the right ones."""
    statuses: list[int] = field(default_factory=list)
    """Errors in place of the next answers."""
    asked: list[str | None] = field(default_factory=list)
    """The header Range of every request."""
    named: list[str] = field(default_factory=list)
    """The name of every request."""
    connections: int = 0


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone."""


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/").partition("?")[0], self.headers.get("Range")
            state.asked.append(wanted)
            state.named.append(name)
            content = state.files.get(name)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
            elif name in state.moved:
                self.send_response(302)
                self.send_header("Location", state.moved[name])
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif content is None:
                self.send_error(404)
            else:
                self.answer(name, content, wanted)

        def answer(self, name: str, content: bytes, wanted: str | None) -> None:
            begin, end = 0, len(content)
            if wanted and state.ranges:
                match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
                assert match is not None
                begin = int(match[1])
                end = min(end, int(match[2]) + 1) if match[2] else end
                if begin >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                span = f"bytes {begin}-{end - 1}/{len(content)}"
                self.send_header("Content-Range", state.spans.pop(0) if state.spans else span)
            else:
                self.send_response(200)
            if name in state.versions:
                self.send_header("ETag", state.versions[name])
            if state.lengths and not state.more:
                self.send_header("Content-Length", str(end - begin))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            body, cuts = content[begin:end] + state.more, state.cuts.get(name)
            if cuts:
                self.wfile.write(body[: cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                time.sleep(state.silence)
            else:
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    running = _QuietServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


def serve_shards(root: Path, server: Server) -> Path:
    """A folder dataset as local tars, three of train and two of val, that the server has too."""
    shards = pack(root, root.parent / "shards")
    server.files = {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    return shards


def addresses(server: Server) -> dict[str, str]:
    """Lists of the tars of ``serve_shards``, by split."""
    return {
        "train": f"# shapes\n\n{server.url}/train-{{000000..000002}}.tar\n",
        "val": f"{server.url}/val-000000.tar?key=a/b\n {server.url}/val-000001.tar \n",
    }


def listed(place: Path, shards: Path, **lists: str) -> Path:
    """A root with the classes and lists of addresses, and no tar."""
    place.mkdir()
    (place / "classes.txt").write_bytes((shards / "classes.txt").read_bytes())
    for split, text in lists.items():
        (place / f"{split}.urls").write_text(text)
    return place


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
