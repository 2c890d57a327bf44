"""A hub in this process: the part of its interface that pushing and loading a model calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that pushing and loading a model calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        """Uploaded beside the commit, by their SHA-256."""
        self.commits = 0
        self.refuse: int | None = None
        """Status of every answer, if set."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuse is not None:
            self._json({"error": "no"}, self.server.refuse)
        elif self.headers.get("Authorization") != "Bearer hf_test":
            self._json({"error": "who are you?"}, 401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            there = name in self.server.repos
            self.server.repos.setdefault(name, {})
            self.server.private.setdefault(
                name, wanted.get("private") is True or wanted.get("visibility") == "private"
            )
            self._json({"url": f"{self.server.url}/{name}"}, 409 if there else 200)
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "shouldIgnore": False,
                            "uploadMode": "lfs"
                            if file["path"].endswith(".safetensors")
                            else "regular",
                        }
                        for file in files
                    ]
                }
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            **item,
                            "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}},
                        }
                        for item in json.loads(body)["objects"]
                    ],
                }
            )
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found.group(1), body)
        else:
            self._json({"error": f"unknown: {self.path}"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.repos[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.repos[name][value["path"]] = self.server.large[value["oid"]]
        self.server.commits += 1
        self._json(
            {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}",
            }
        )

    def do_PUT(self) -> None:
        body = self._body()
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self._answer(200)

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", self.path)
        if self.server.refuse is not None:
            self._json({"error": "no"}, self.server.refuse)
        elif found is None:
            self._json({"error": f"unknown: {self.path}"}, 404)
        elif found.group(1) not in self.server.repos:
            self._answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif found.group(2) not in ("main", "0" * 40):
            self._answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="No revision")
        elif found.group(3) not in self.server.repos[found.group(1)]:
            self._answer(
                404, X_Error_Code="EntryNotFound", X_Error_Message="No file", X_Repo_Commit="0" * 40
            )
        else:
            content = self.server.repos[found.group(1)][found.group(3)]
            tag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, ETag=f'"{tag}"', X_Repo_Commit="0" * 40)

    def do_HEAD(self) -> None:
        self.do_GET()
