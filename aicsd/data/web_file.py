"""Parts of files on web servers, by range requests on connections that stay open."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from aicsd.data.download import TIMEOUT
from aicsd.errors import UserError, one_line

WAITS = (0.0, 0.0, 1.0, 2.0, 4.0)
"""Seconds before every try. A server may close an idle connection, so the second comes at once."""
BUSY = (408, 429, 500, 502, 503, 504)
MOVED = (301, 302, 303, 307, 308)
REDIRECTS = 5
OPEN = 4
"""Connections that a thread keeps."""
PIECE = 1 << 16
SAFE = "/%:=&?~+!$,;'@()*[]"
"""Characters of an address that are not to be quoted, beside letters and digits."""
LONGEST_VERSION = 200
CHANGED = "has changed since its headers were read"


class WebFile(NamedTuple):
    """A file on a web server that serves ranges of bytes."""

    url: str
    length: int
    version: str
    """Its ETag, or without one Last-Modified; "" without both."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; a connection that breaks is continued.

        Raises:
            UserError: no response from the server, or other bytes, or the file has changed.
        """
        return _read(self.url, offset, size, self)[0] if size else b""

    def __str__(self) -> str:
        return shown(self.url)


class _BusyError(Exception):
    """The server is unavailable at the moment."""


def find_web_file(url: str) -> WebFile:
    """Length and version of the file at ``url``, by a request for its first byte.

    A HEAD would not show whether ranges are served, and addresses that are signed for GET refuse
    it.

    Raises:
        UserError: as :meth:`WebFile.read`, or a server that serves no ranges.
    """
    return _read(url, 0, 1, None)[1]


def shown(url: str) -> str:
    """An address without what may be secret: name, password and query."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def _read(url: str, offset: int, size: int, known: WebFile | None) -> tuple[bytes, WebFile]:
    data, problem = bytearray(), ""
    for wait in WAITS:
        time.sleep(wait)
        begin, end = offset + len(data), offset + size - 1
        is_sound = False
        try:
            with _answer(url, begin, end) as answer:
                found = _described(answer, url, begin, end, known)
                if known is not None and found != known:
                    raise UserError(f"{shown(url)} {CHANGED}")
                known = found
                while len(data) < size and (piece := answer.read(min(PIECE, size - len(data)))):
                    data += piece
                is_whole = len(data) == size
                is_sound = is_whole and answer.isclosed()  # otherwise bytes are left in the socket
            if is_whole:
                return bytes(data), known
            problem = f"the connection ended after {len(data)} of {size} bytes"
        except (OSError, http.client.HTTPException, _BusyError) as error:
            problem = one_line(error)
        finally:
            if not is_sound:
                _here.drop()
    raise UserError(f"{shown(url)} cannot be read ({len(WAITS)} tries): {problem}")


def _answer(url: str, first: int, last: int) -> http.client.HTTPResponse:
    """The response to a request for bytes ``first`` to ``last``, after redirects."""
    headers = {
        "User-Agent": "aicsd",
        "Accept-Encoding": "identity",
        "Range": f"bytes={first}-{last}",
    }
    place = _here.places().get(url, url)
    is_new = place == url
    for _ in range(REDIRECTS + 1):
        connection, target = _here.connection(place, url)
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status not in MOVED:
            if answer.status in BUSY or (answer.status >= 400 and not is_new):
                # an address that a redirect led to may have expired
                raise _BusyError(f"the server answers {answer.status} {answer.reason}")
            if answer.status == 206 and place != url:
                _here.places()[url] = place
            return answer
        connection.close()
        place, is_new = urljoin(place, answer.headers.get("Location", "")), True
    raise UserError(f"{shown(url)}: the server redirects more than {REDIRECTS} times")


def _described(
    answer: http.client.HTTPResponse, url: str, first: int, last: int, known: WebFile | None
) -> WebFile:
    """The file that a response is a part of.

    Raises:
        UserError: a response other than bytes ``first`` to ``last``.
    """
    if answer.status == 200:
        raise UserError(
            f"{shown(url)}: the server does not send parts of files (range requests); copy the "
            "tars with aicsd data prepare shards"
        )
    if answer.status == 416:
        what = "is empty" if known is None else CHANGED
        raise UserError(f"{shown(url)} {what}")
    if answer.status != 206:
        raise UserError(f"{shown(url)}: the server answers {answer.status} {answer.reason}")
    span = re.fullmatch(
        r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", "")
    )
    if span is None or (int(span[1]), int(span[2])) != (first, last):
        raise UserError(f"{shown(url)}: the server sends other bytes than it was asked for")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return WebFile(url, int(span[3]), version[:LONGEST_VERSION])


class _Here(threading.local):
    """Connections of this thread in this process, and where redirects led it.

    A forked process would otherwise talk on the sockets of its parent.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._places: dict[str, str] = {}

    def places(self) -> dict[str, str]:
        """Targets of redirects, by the requested address."""
        if self._process != os.getpid():
            self._process, self._open, self._places = os.getpid(), {}, {}
        return self._places

    def connection(self, place: str, url: str) -> tuple[http.client.HTTPConnection, str]:
        """A connection for an address, and the target of the request."""
        try:
            parts = urlsplit(place)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("redirects go to http:// or https:// only")
            key = (parts.scheme, parts.netloc)
            if key not in self._open:
                if len(self._open) == OPEN:
                    self.drop()
                self._open[key] = _connect(parts)
        except ValueError as error:
            raise UserError(f"{shown(url)} leads to no address: {error}") from error
        target = quote(parts.path or "/", safe=SAFE)
        if parts.query:
            target += f"?{quote(parts.query, safe=SAFE)}"
        if parts.scheme == "http" and _proxy(parts) is not None:
            target = f"http://{parts.netloc}{target}"
        return self._open[key], target

    def drop(self) -> None:
        """Close all connections, and clear the targets of redirects."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()
        self._places.clear()


_here = _Here()


def _proxy(parts: SplitResult) -> str | None:
    """The proxy for an address, from the variables ``http_proxy``, ``https_proxy`` and so on."""
    assert parts.hostname is not None
    proxy = getproxies().get(parts.scheme)
    return None if not proxy or proxy_bypass(parts.hostname) else proxy


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    proxy = _proxy(parts)
    at = parts if proxy is None else urlsplit(proxy if "//" in proxy else f"//{proxy}")
    assert parts.hostname is not None
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(at.hostname or "", at.port, timeout=TIMEOUT)
    if proxy is not None and parts.scheme == "https":
        connection.set_tunnel(parts.hostname, parts.port)
    return connection
