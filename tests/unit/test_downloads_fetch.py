"""The downloader against servers that do well, lie, stall and lead astray."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.downloads import disk
from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import part as part_module
from genai_notebook.core.downloads.fetch import Fetch, fetch, peek
from genai_notebook.core.downloads.urls import _is_public, check_url, follow, without_credentials
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import (
    ChecksumError,
    DownloadError,
    FileSystemError,
    InsufficientResourcesError,
    InvalidRequestError,
)
from tests.fakes.file_server import FileServer, file_server

BODY = os.urandom(1 << 20) * 3
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.001)


def get(url: str, target: Path, work: Work | None = None, **more: Any) -> Any:
    return fetch(Fetch(url=url, target=target, **more), work or Work())


def void(_: object) -> None:
    """For routes, which return nothing."""


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_good_file(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    url = server.add("/a", BODY)
    found = get(url, target, Work(lambda done, total: seen.append((done, total))), sha256=DIGEST, size=len(BODY))
    assert target.read_bytes() == BODY
    assert (found.sha256, found.size) == (DIGEST, len(BODY))
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    if os.name == "posix":
        assert target.stat().st_mode & 0o777 == 0o600


def test_a_file_of_unknown_length(server: FileServer, target: Path) -> None:
    seen: list[int | None] = []
    get(server.add("/a", BODY, length=-1), target, Work(lambda _, total: seen.append(total)))
    assert target.read_bytes() == BODY
    assert seen[0] is None
    assert seen[-1] == len(BODY)


def test_an_empty_file(server: FileServer, target: Path) -> None:
    assert get(server.add("/a", b""), target).size == 0


def test_a_wrong_checksum(server: FileServer, target: Path) -> None:
    with pytest.raises(ChecksumError) as caught:
        get(server.add("/a", BODY), target, sha256="0" * 64)
    assert (caught.value.expected, caught.value.actual) == ("0" * 64, DIGEST)
    assert not target.exists()
    assert get(server.url + "/a", target, sha256=DIGEST).size == len(BODY)


@pytest.mark.parametrize(
    ("served", "promised"),
    [({"length": len(BODY) + 10}, None), ({}, len(BODY) + 1), ({}, len(BODY) - 1),
     ({"length": -1}, len(BODY) + 1), ({"length": -1}, len(BODY) - 1)],
)  # fmt: skip
def test_wrong_lengths(server: FileServer, target: Path, served: dict[str, int], promised: int | None) -> None:
    with pytest.raises(DownloadError) as caught:
        get(server.add("/a", BODY, **served), target, size=promised)  # type: ignore[arg-type]
    assert (caught.value.details or {})["reason"] == "length"
    assert list(target.parent.iterdir()) == []


def test_a_body_shorter_than_it_is(server: FileServer, target: Path) -> None:
    """Announced too short: there is no telling but by the checksum."""
    with pytest.raises(ChecksumError):
        get(server.add("/a", BODY, length=len(BODY) - 10), target, sha256=DIGEST)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("length", ["-5", "3.5", "many", "1, 2", "²"])
def test_lengths_that_are_none(server: FileServer, target: Path, length: str) -> None:
    """Then the body ends where the connection does."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1") + BODY)

    server.routes["/a"] = route
    assert get(server.url + "/a", target).sha256 == DIGEST


def test_chunked_bodies(server: FileServer, target: Path) -> None:
    head, pieces = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n", [BODY[:10], BODY[10:]]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    answers = [head + chunks, head + chunks + b"0\r\n\r\n"]  # the first breaks off before its end
    server.routes["/a"] = lambda handler: void(handler.wfile.write(answers.pop(0)))
    assert get(server.url + "/a", target).sha256 == DIGEST
    assert answers == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000],
)
def test_answers_that_are_none(server: FileServer, target: Path, answer: bytes) -> None:
    server.routes["/a"] = lambda handler: void(handler.wfile.write(answer))
    with pytest.raises(DownloadError) as caught:
        get(server.url + "/a", target)
    assert caught.value.hint
    assert len(server.seen) == fetch_module.RETRIES + 1


def test_an_endless_body(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_SPACE_CHECK", 1 << 20)
    monkeypatch.setattr(disk, "free_space", lambda folder: (8 << 20) + disk.RESERVE - used(folder))

    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(BODY)

    server.routes["/a"] = route
    with pytest.raises(InsufficientResourcesError):
        get(server.url + "/a", target)
    assert list(target.parent.iterdir()) == []  # the disk is as free as before


@pytest.mark.parametrize("status", [204, 401, 403, 404, 429, 500, 503])
def test_other_statuses(server: FileServer, target: Path, status: int) -> None:
    with pytest.raises(DownloadError, match=str(status)):
        get(server.add("/a", b"", status=status), target)
    assert list(target.parent.iterdir()) == []


def test_a_compressed_body_is_refused(server: FileServer, target: Path) -> None:
    with pytest.raises(DownloadError, match="compressed"):
        get(server.add("/a", BODY, Content_Encoding="gzip"), target)


def test_a_stall_is_given_up(server: FileServer, target: Path) -> None:
    with pytest.raises(DownloadError, match="No byte") as caught:
        get(server.add_hanging("/a", BODY[:1000], len(BODY)), target, stall_limit=0.3)
    assert caught.value.details == {"reason": "stalled"}


def test_a_server_that_is_not_there(target: Path) -> None:
    with file_server() as gone:
        url = gone.url
    with pytest.raises(DownloadError) as caught:
        get(url + "/a", target)
    assert caught.value.details == {"reason": "unreachable"}
    assert caught.value.hint


def test_cancelled_in_the_middle(server: FileServer, target: Path) -> None:
    begun = threading.Event()
    work = Work(lambda done, _: begun.set() if done else None)
    url = server.add_hanging("/a", BODY[: 1 << 19], len(BODY))
    threading.Thread(target=lambda: (begun.wait(30), work.cancel())).start()
    with pytest.raises(DownloadError) as caught:
        get(url, target, work)
    assert is_cancelled(caught.value)
    assert not target.exists()


def test_cancelled_before_it_begins(server: FileServer, target: Path) -> None:
    work = Work()
    work.cancel()
    with pytest.raises(DownloadError) as caught:
        get(server.add("/a", BODY), target, work)
    assert is_cancelled(caught.value)


# ---- redirects


def test_redirects_are_followed_and_a_token_stays_with_its_host(server: FileServer, target: Path) -> None:
    with file_server() as other:
        server.add_redirect("/a", "/b?x=1")
        server.add_redirect("/b", other.add("/c", BODY))
        get(server.url + "/a", target, headers={"Authorization": "Bearer secret"})
        assert target.read_bytes() == BODY
        assert [("Authorization" in headers) for _, _, headers in server.seen] == [True, True]
        assert [("Authorization" in headers) for _, _, headers in other.seen] == [False]


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://example.org/x", "data:,x", "gopher://x/"])
def test_redirects_to_other_schemes(server: FileServer, target: Path, to: str) -> None:
    server.add_redirect("/a", to)
    with pytest.raises(DownloadError):
        get(server.url + "/a", target)
    with pytest.raises(DownloadError, match="not followed"):
        follow(server.url, server.url, to)


def test_redirects_in_a_circle(server: FileServer, target: Path) -> None:
    server.add_redirect("/a", "/a")
    with pytest.raises(DownloadError, match="more than 10 times"):
        get(server.url + "/a", target)


@pytest.mark.parametrize(
    "to",
    ["http://169.254.169.254/latest", "http://2852039166/", "http://[::ffff:10.0.0.1]/", "http://127.0.0.1/x",
     "http://192.168.1.1/x", "http://[::1]/", "http://0.0.0.0/"],
)  # fmt: skip
def test_redirects_into_private_networks(to: str) -> None:
    with pytest.raises(DownloadError, match="private network"):
        follow("http://models.example/a", "http://models.example/a", to)


def test_redirects_that_are_fine_or_not() -> None:
    assert follow("http://10.0.0.1/a", "http://10.0.0.1/a", "https://10.0.0.1:8443/b") == "https://10.0.0.1:8443/b"
    with pytest.raises(DownloadError, match="plain http"):
        follow("https://8.8.8.8/a", "https://8.8.8.8/a", "http://8.8.8.8/b")


def test_redirects_inside_an_intranet(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"mirror.lan": ["192.168.7.1"], "models.example": ["8.8.8.8"], "both.example": ["8.8.8.8", "10.0.0.1"]}

    def look_up(host: str, port: object) -> list[Any]:
        return [(0, 0, 0, "", (address, 0)) for address in names.get(host, [host])]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for typed in ("http://mirror.lan/a", "http://10.1.2.3/a", "http://[fd12::1]/a", "http://100.64.0.9/a"):
        for to in ("http://10.9.9.9/b", "http://[fd00::2]:81/b", "http://172.31.0.1/", "http://8.8.8.8/b"):
            assert follow(typed, typed, to) == to
        for to in ("http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://[fe80::1]/", "http://0.0.0.0/",
                   "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://[::ffff:127.0.0.1]/"):  # fmt: skip
            with pytest.raises(DownloadError, match="private network"):
                follow(typed, typed, to)
    for typed in ("http://models.example/a", "http://both.example/a", "http://127.0.0.1/a", "http://169.254.1.1/a"):
        for to in ("http://10.9.9.9/b", "http://both.example/c", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/"):
            if to.split("/")[2] != typed.split("/")[2]:
                with pytest.raises(DownloadError, match="private network"):
                    follow(typed, typed, to)


def test_a_redirect_that_is_not_quoted(server: FileServer, target: Path) -> None:
    server.routes["/a"] = lambda handler: void(
        handler.wfile.write("HTTP/1.1 302 Found\r\nLocation: /b/é?x=ü\r\n\r\n".encode())
    )
    server.add("/b/%C3%A9", BODY)
    get(server.url + "/a", target)
    assert target.read_bytes() == BODY
    assert server.seen[1][1] == "/b/%C3%A9?x=%C3%BC"


def test_public_addresses() -> None:
    assert _is_public("8.8.8.8")
    assert _is_public("::ffff:8.8.8.8")
    assert not _is_public("::ffff:127.0.0.1")
    assert not _is_public("fe80::1%eth0")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://x/y", "http://", "https:///x", "x", "", "http://a b/", "http://a/\n", "http://a:x/",
     "javascript:1", "http:\\\\a"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_url(url)
    assert caught.value.details == {"field": "url"}


def test_credentials_are_not_shown() -> None:
    assert without_credentials("https://me:secret@host:8/x?y") == "https://host:8/x?y"


# ---- the disk


def test_no_room_before_the_body(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_space", lambda folder: 1000)
    with pytest.raises(InsufficientResourcesError) as caught:
        get(server.add("/a", BODY), target)
    assert set(caught.value.details or {}) == {"required", "available", "suggestion"}


def test_a_disk_that_fills_up_while_writing(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = part_module._open

    class Full:
        """A file on a disk with room for a megabyte."""

        def __init__(self, file: FileIO) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            if self.file.tell() >= 1 << 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    file = server.add_file("/a", BODY)
    with monkeypatch.context() as patch:
        patch.setattr(part_module, "_open", lambda path: Full(real(path)))
        with pytest.raises(InsufficientResourcesError):
            get(file.url, target)
    assert peek(target) is not None  # what fitted is kept
    assert get(file.url, target).sha256 == DIGEST


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FileSystemError):
        get(server.add("/a", BODY), tmp_path / "missing" / "a.bin")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_planted_beside_the_target_are_not_written_through(
    server: FileServer, target: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for plant in (os.symlink, os.link):
        for name in ("a.bin.part", "a.bin.part.json"):
            plant(victim, target.with_name(name))
            get(server.add_file("/a", BODY).url, target)
            assert victim.read_text() == "mine"
            assert target.read_bytes() == BODY
            target.unlink()


def test_the_beginning_is_shown_and_may_be_refused(server: FileServer, target: Path) -> None:
    shown: list[int] = []

    def inspect(data: bytes) -> bool:
        shown.append(len(data))
        return len(shown) == 2

    get(server.add("/a", BODY), target, inspect=inspect)
    assert len(shown) == 2
    assert (1 << 16) <= shown[0] < shown[1]
    target.unlink()

    def refuse(data: bytes) -> bool:
        raise DownloadError("no model")

    with pytest.raises(DownloadError, match="no model"):
        get(server.url + "/a", target, inspect=refuse)
    with pytest.raises(DownloadError, match="no model"):  # shorter than the first look
        get(server.add("/b", b"<html>"), target, inspect=refuse)
    with pytest.raises(DownloadError, match="no model"):
        get(server.add_file("/c", BODY).url, target, inspect=refuse)
    assert list(target.parent.iterdir()) == []
