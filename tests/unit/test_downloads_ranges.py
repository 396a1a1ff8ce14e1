"""Servers and ranges: those that take none, or lie, or want a rest; and the first bytes of files elsewhere."""

from __future__ import annotations

import contextlib
import email.utils
import os
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.downloads import connection as connection_module
from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import transfer as transfer_module
from genai_notebook.core.downloads.fetch import FIRST, Fetch, fetch, read_head
from genai_notebook.core.downloads.part import discard
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import DownloadError
from tests.downloads import MB, get, leave, void
from tests.fakes.file_server import FileServer, ServedFile

BODY = os.urandom(MB) * 6
OTHER = os.urandom(MB) * 6


@pytest.fixture
def file(server: FileServer) -> ServedFile:
    return server.add_file("/a", BODY)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.001)
    monkeypatch.setattr(transfer_module, "WORTHWHILE", 1 << 60)  # one connection
    monkeypatch.setattr(transfer_module, "_TICK", 0.01)
    monkeypatch.setattr(connection_module, "_GATHERING", 0.01)


# ---- servers and ranges


def test_a_server_that_has_stopped_taking_ranges(file: ServedFile, target: Path) -> None:
    leave(file, target)
    file.ranges = False
    get(file, target)
    assert file.asked == [None, None]  # instead of the rest; and from the beginning


def test_a_server_without_ranges_is_asked_again_from_the_beginning(file: ServedFile, target: Path) -> None:
    file.ranges = False
    cuts = [2 * MB, 5 * MB, 1 << 60]

    def cut(sent: int) -> None:
        if sent >= cuts[0]:
            del cuts[0]
            raise ConnectionError

    file.before = cut
    get(file, target)
    assert file.asked == [None] * 3
    target.unlink()
    cuts[:] = [0, 0, 0, 0]
    with pytest.raises(DownloadError):
        get(file, target)
    assert list(target.parent.iterdir()) == []


def answering(status: str, *headers: str, body: bytes = b"") -> Any:
    """An answer to requests with a range, word for word."""

    def instead(handler: BaseHTTPRequestHandler, asked: tuple[int, int] | None) -> bool:
        if asked is not None:
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
            handler.wfile.write("\r\n".join(lines).encode() + body)
        return asked is not None

    return instead


LIES = [
    answering("206 Partial Content", f"Content-Range: bytes 5-{FIRST + 4}/{len(BODY)}", 'ETag: "x"', body=BODY[:FIRST]),
    answering("206 Partial Content", f"Content-Range: bytes 0-{FIRST - 1}/*", 'ETag: "x"', body=BODY[:FIRST]),
    answering("206 Partial Content", "Content-Type: multipart/byteranges; boundary=x", 'ETag: "x"', body=BODY[:FIRST]),
    answering("206 Partial Content", "Content-Range: bytes 9", body=BODY[:FIRST]),
    answering("416 Range Not Satisfiable"),
    answering("416 Range Not Satisfiable", f"Content-Range: bytes */{len(BODY)}"),
]


@pytest.mark.parametrize("lie", LIES)
def test_ranges_that_are_wrong_from_the_first(file: ServedFile, target: Path, lie: Any) -> None:
    """Then the file is had without them."""
    file.instead = lie
    get(file, target)
    assert file.asked == [(0, FIRST), None]


@pytest.mark.parametrize("lie", LIES)
def test_ranges_that_are_wrong_later(file: ServedFile, target: Path, lie: Any) -> None:
    kept = leave(file, target)
    file.instead = lie
    with contextlib.suppress(DownloadError):
        get(file, target)
    assert len(file.asked) <= 8
    assert not target.exists() or target.read_bytes() == BODY
    discard(target)
    if target.exists():
        target.unlink()
    file.instead = lambda handler, asked: False
    assert leave(file, target) == kept
    get(file, target)


def test_a_server_that_never_sends_what_is_asked_for(server: FileServer, target: Path) -> None:
    server.add("/a", BODY[:FIRST], status=206, Content_Range=f"bytes 7-{FIRST + 6}/{len(BODY)}")
    with pytest.raises(DownloadError) as caught:
        fetch(Fetch(url=server.url + "/a", target=target), Work())
    assert caught.value.details == {"reason": "range"}
    assert caught.value.hint
    assert not target.exists()


def test_an_answer_with_less_than_was_asked_for(file: ServedFile, target: Path) -> None:
    """Servers may send shorter ranges; and some send none at all, politely."""

    def shorter(handler: BaseHTTPRequestHandler, asked: tuple[int, int] | None) -> bool:
        if asked is None:
            return False
        first, last = asked[0], min(asked[1], asked[0] + step)
        lines = ["HTTP/1.1 206 Partial Content", f"Content-Length: {last - first}", f"ETag: {file.etag}"]
        lines += [f"Content-Range: bytes {first}-{last - 1}/{len(BODY)}", "", ""]
        handler.wfile.write("\r\n".join(lines).encode() + BODY[first:last])
        return True

    file.instead, step = shorter, 600_000
    work = Waits()
    get(file, target, work)
    assert work.waits == []
    target.unlink()
    leave(file, target, at=MB)
    step = 0
    with pytest.raises(DownloadError) as caught:
        get(file, target)
    assert caught.value.details == {"reason": "length"}


def test_signed_addresses_expire(server: FileServer, file: ServedFile, target: Path) -> None:
    """Redirects are remembered, so that the first host is asked once; until they hold no longer."""
    signed = iter("123456789")
    now = next(signed)

    def typed(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"/cdn?signature={now}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def cdn(handler: BaseHTTPRequestHandler) -> None:
        nonlocal now
        if handler.path.endswith(now):
            file.answer(handler)
        else:
            handler.send_error(403)

    def expire(sent: int) -> None:
        nonlocal now
        if file.sent - int(now) * MB > MB:
            now = next(signed)
            raise ConnectionError

    file.before = expire
    server.routes |= {"/typed": typed, "/cdn": cdn}
    fetched = fetch(Fetch(url=server.url + "/typed", target=target), Work())
    assert target.read_bytes() == BODY
    assert fetched.url == server.url + "/typed"
    paths = [path for _, path, _ in server.seen]
    assert paths[:3] == ["/typed", "/cdn?signature=1", "/cdn?signature=1"]
    assert paths.count("/typed") == int(now)


# ---- when a server asks to wait


class Waits(Work):
    """Notes how long it was to wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.waits.append(round(seconds, 2))


def busy(file: ServedFile, status: str, retry_after: str, times: int) -> None:
    left = [None] * times

    def instead(handler: BaseHTTPRequestHandler, asked: tuple[int, int] | None) -> bool:
        if left:
            left.pop()
            handler.wfile.write(
                f"HTTP/1.1 {status}\r\nRetry-After: {retry_after}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            return True
        return False

    file.instead = instead


def test_a_busy_server_says_when_to_come_back(file: ServedFile, target: Path) -> None:
    busy(file, "503 Service Unavailable", "7", 2)
    work = Waits()
    get(file, target, work)
    assert work.waits == [7, 7]
    target.unlink()
    busy(file, "429 Too Many Requests", email.utils.formatdate(time.time() + 20, usegmt=True), 1)
    work = Waits()
    get(file, target, work)
    assert 15 <= work.waits[0] <= 20
    target.unlink()
    for nonsense in ("soon", "-1", "1e9", ""):
        busy(file, "503 Service Unavailable", nonsense, 1)
        get(file, target, Waits())
        target.unlink()


def test_a_server_that_asks_for_a_long_wait_is_left_alone(file: ServedFile, target: Path) -> None:
    busy(file, "429 Too Many Requests", "3600", 9)
    work = Waits()
    with pytest.raises(DownloadError) as caught:
        get(file, target, work)
    assert "60 minutes" in (caught.value.hint or "")
    assert work.waits == []


# ---- heads


def test_a_head_takes_one_small_request(file: ServedFile) -> None:
    head = read_head(file.url, {"X-Mine": "1"}, lambda data: True, Work())
    assert (head.data, head.size) == (BODY[:FIRST], len(BODY))
    assert (file.asked, file.sent) == ([(0, FIRST)], FIRST)


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_head_that_is_not_enough(file: ServedFile, with_ranges: bool) -> None:
    file.ranges = with_ranges
    head = read_head(file.url, {}, lambda data: len(data) >= 10 * FIRST, Work())
    assert head.data == BODY[: 16 * FIRST]
    assert head.size == len(BODY)
    assert len(file.asked) == 3


@pytest.mark.parametrize("with_ranges", [True, False])
@pytest.mark.parametrize("size", [0, 1, FIRST, 3 * FIRST])
def test_a_head_of_a_file_that_is_all_head(server: FileServer, with_ranges: bool, size: int) -> None:
    file = server.add_file("/b", OTHER[:size])
    file.ranges = with_ranges
    head = read_head(file.url, {}, lambda data: False, Work())
    assert head.data == OTHER[:size]


def test_a_head_of_a_file_that_changes(file: ServedFile) -> None:
    def enough(data: bytes) -> bool:
        file.change(OTHER)
        return len(data) > FIRST

    assert read_head(file.url, {}, enough, Work()).data == OTHER[: 4 * FIRST]


def test_a_head_that_never_comes(server: FileServer, file: ServedFile) -> None:
    begun = threading.Event()
    file.before = lambda sent: void((begun.set(), server.hold.wait(30)))
    work = Work()
    cancelling = threading.Thread(target=lambda: (begun.wait(30), work.cancel()))
    cancelling.start()
    with pytest.raises(DownloadError) as caught:
        read_head(file.url, {}, lambda data: True, work)
    assert is_cancelled(caught.value)
    cancelling.join()


def test_a_head_and_no_model(server: FileServer) -> None:
    with pytest.raises(DownloadError):
        read_head(server.url + "/none", {}, lambda data: True, Work())
    server.add("/z", BODY, status=200, Content_Encoding="gzip")
    with pytest.raises(DownloadError, match="compressed"):
        read_head(server.url + "/z", {}, lambda data: True, Work())
