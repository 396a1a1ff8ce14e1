"""What an earlier try has left is used again: as far as it is sure to belong to the same file, and no further."""

from __future__ import annotations

import contextlib
import email.utils
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import part as part_module
from genai_notebook.core.downloads import transfer as transfer_module
from genai_notebook.core.downloads.fetch import FIRST, Fetch, Fetched, begin, fetch, peek, read_head
from genai_notebook.core.downloads.part import discard, journal_of, part_of
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import ChecksumError, DownloadError, FileSystemError
from tests.fakes import eventually
from tests.fakes.file_server import FileServer, ServedFile, file_server

MB = 1 << 20
BODY = os.urandom(MB) * 6
OTHER = os.urandom(MB) * 6


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@pytest.fixture
def file(server: FileServer) -> ServedFile:
    return server.add_file("/a", BODY)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where to; beside a finished file, nothing stays."""
    folder = tmp_path / "files"
    folder.mkdir()
    target = folder / "a.bin"
    yield target
    if target.exists():
        assert [path.name for path in folder.iterdir()] == ["a.bin"]


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.01)
    monkeypatch.setattr(transfer_module, "WORTHWHILE", 1 << 60)  # one connection


def get(file: ServedFile, target: Path, work: Work | None = None, **more: Any) -> Fetched:
    found = fetch(Fetch(url=file.url, target=target, **more), work or Work())
    assert target.read_bytes() == file.body
    assert (found.sha256, found.size, found.path) == (file.sha256, len(file.body), target)
    return found


def leave(file: ServedFile, target: Path, at: int = 3 * MB, **more: Any) -> int:
    """Get about that many bytes, all at most, and let the download be cancelled then; how many there are."""
    ended = threading.Event()
    work = Work(
        lambda done, _: work.cancel() if done >= at - 2 * FIRST else None,
        lambda phase: work.cancel() if phase == "verifying" else None,
    )
    file.sent = 0
    before, file.before = file.before, lambda sent: void(sent >= at and ended.wait(30))
    with pytest.raises(DownloadError) as caught:
        fetch(Fetch(url=file.url, target=target, **more), work)
    ended.set()
    assert is_cancelled(caught.value)
    assert not target.exists()
    eventually(lambda: not file.open)
    file.before, file.sent = before, 0
    file.asked.clear()
    state = peek(target)
    return state[0] if state else 0


def void(_: object) -> None:
    """For hooks, which return nothing."""


def ranges(file: ServedFile) -> list[tuple[int, int]]:
    """What was asked for, each time."""
    assert None not in file.asked
    return [asked for asked in file.asked if asked is not None]


def headers_of_last(server: FileServer) -> dict[str, str]:
    return server.seen[-1][2]


# ---- the same file


@pytest.mark.parametrize("promise", [True, False])
def test_after_a_cancellation(server: FileServer, file: ServedFile, target: Path, promise: bool) -> None:
    sha256 = file.sha256 if promise else None
    kept = leave(file, target, sha256=sha256)
    assert kept > 2 * MB
    get(file, target, sha256=sha256)
    assert ranges(file) == [(kept, len(BODY))]
    assert headers_of_last(server)["If-Range"] == file.etag


def test_after_a_failure(file: ServedFile, target: Path) -> None:
    def gone(sent: int) -> None:
        if sent > 2 * MB:
            raise ConnectionError

    file.before = gone
    with pytest.raises(DownloadError) as caught:
        get(file, target)
    assert caught.value.hint
    kept, size = peek(target) or (0, None)
    assert kept > 2 * MB
    assert size == len(BODY)
    file.before = lambda sent: None
    file.asked.clear()
    get(file, target)
    assert ranges(file) == [(kept, len(BODY))]


def test_a_server_that_cuts_again_and_again(file: ServedFile, target: Path) -> None:
    file.cut = MB
    get(file, target)
    assert len(file.asked) == 7
    assert file.sent == len(BODY)


def test_a_server_that_gives_next_to_nothing_is_given_up(file: ServedFile, target: Path) -> None:
    file.cut = 1000
    with pytest.raises(DownloadError) as caught:
        get(file, target)
    assert caught.value.details == {"reason": "length"}
    assert len(file.asked) == fetch_module.RETRIES + 1


def test_a_slow_but_steady_server_is_not_given_up(server: FileServer, target: Path) -> None:
    """Altogether it takes longer than the stall limit."""
    file = server.add_file("/a", BODY[: 512 << 10])
    file.piece, file.pause = 16 << 10, 0.02
    get(file, target, stall_limit=0.3)
    assert len(file.asked) == 2


def test_stalls_are_ended_and_the_rest_is_asked_for(server: FileServer, file: ServedFile, target: Path) -> None:
    stalls = iter([MB, 2 * MB, 1 << 60])
    at = next(stalls)

    def stall(sent: int) -> None:
        nonlocal at
        if sent >= at:
            at = next(stalls)
            server.hold.wait(30)
            raise ConnectionError

    file.before = stall
    get(file, target, stall_limit=0.2)
    assert [first for first, _ in ranges(file)][2:] == [MB, 2 * MB]
    assert file.sent == len(BODY)


def test_small_files_take_one_request(server: FileServer, target: Path) -> None:
    for size in (1, FIRST - 1, FIRST):
        file = server.add_file("/a", BODY[:size])
        get(file, target)
        assert len(file.asked) == 1
        target.unlink()


def test_a_beginning_is_not_fetched_twice(file: ServedFile, target: Path) -> None:
    shown: list[int] = []

    def inspect(data: bytes) -> bool:
        shown.append(len(data))
        return True

    request = Fetch(url=file.url, target=target, inspect=inspect)
    assert begin(request, Work()) == len(BODY)
    assert peek(target) == (FIRST, len(BODY))
    assert begin(request, Work()) == len(BODY)
    assert fetch(request, Work()).sha256 == file.sha256
    assert ranges(file) == [(0, FIRST), (FIRST, len(BODY))]
    assert shown == [FIRST] * 3


def test_a_part_that_is_whole_needs_no_server(server: FileServer, file: ServedFile, target: Path) -> None:
    def inspect(data: bytes) -> bool:
        raise DownloadError("enough", {"reason": "cancelled"})

    leave(file, target, at=2 * len(BODY), sha256=file.sha256)
    assert peek(target) == (len(BODY), len(BODY))
    seen: list[tuple[int, int | None]] = []
    get(file, target, Work(lambda *state: seen.append(state)), sha256=file.sha256)
    assert file.asked == []
    assert set(seen) == {(len(BODY), len(BODY))}


def test_progress_begins_where_it_ended(file: ServedFile, target: Path) -> None:
    kept = leave(file, target)
    seen: list[int] = []
    get(file, target, Work(lambda done, _: seen.append(done)))
    assert seen[0] == kept
    assert seen == sorted(seen)


# ---- another file


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changed_meanwhile(file: ServedFile, target: Path, heeds: bool) -> None:
    leave(file, target)
    file.change(OTHER)
    file.if_range = heeds
    get(file, target)


@pytest.mark.parametrize("body", [OTHER[: 4 * MB], OTHER[: 2 * MB], OTHER[:1000], b"", OTHER + OTHER])
def test_a_file_that_changed_its_size(file: ServedFile, target: Path, body: bytes) -> None:
    leave(file, target)
    file.change(body)
    file.etag = None  # nothing else tells
    get(file, target)


def test_a_file_that_changes_while_it_is_sent(file: ServedFile, target: Path) -> None:
    def change(sent: int) -> None:
        if sent >= 2 * MB and file.body is BODY:
            file.change(OTHER)
            raise ConnectionError

    file.before = change
    get(file, target)


def test_a_file_that_changes_all_the_time(file: ServedFile, target: Path) -> None:
    def change(sent: int) -> None:
        if sent % (2 * MB) > MB:
            file.change(os.urandom(MB) * 6)
            raise ConnectionError

    file.before = change
    with pytest.raises(DownloadError) as caught:
        get(file, target)
    assert caught.value.details == {"reason": "changed"}
    assert list(target.parent.iterdir()) == []


def test_another_promise(file: ServedFile, target: Path) -> None:
    leave(file, target)
    with pytest.raises(DownloadError, match="promised"):
        get(file, target, size=5)
    leave(file, target, sha256="0" * 64)
    get(file, target, sha256=file.sha256, size=len(BODY))
    assert ranges(file)[0] == (0, FIRST)


# ---- how a server names a version


@pytest.mark.parametrize(
    ("etag", "modified", "if_range"),
    [
        (None, "Tue, 24 Nov 2026 10:01:22 GMT", "Tue, 24 Nov 2026 10:01:22 GMT"),
        ('W/"x"', "Tue, 24 Nov 2026 10:01:22 GMT", "Tue, 24 Nov 2026 10:01:22 GMT"),
        ('W/"x"', None, None),
        ('"x"', "Tue, 24 Nov 2026 10:01:22 GMT", '"x"'),
    ],
)
def test_weak_and_strong(
    server: FileServer, file: ServedFile, target: Path, etag: str | None, modified: str | None, if_range: str | None
) -> None:
    file.etag, file.modified = etag, modified
    kept = leave(file, target)
    get(file, target)
    assert ranges(file) == [(kept, len(BODY))]
    assert headers_of_last(server).get("If-Range") == if_range
    target.unlink()
    leave(file, target)
    file.body, file.if_range = OTHER, False
    file.etag, file.modified = etag and etag.replace("x", "y"), modified and modified.replace("24", "25")
    get(file, target)


def test_an_answer_that_names_less_than_the_first(file: ServedFile, target: Path) -> None:
    """A 206 to an If-Range need not repeat all headers."""
    file.modified = "Tue, 24 Nov 2026 10:01:22 GMT"
    kept = leave(file, target)
    file.etag, file.if_range = None, False
    get(file, target)
    assert ranges(file) == [(kept, len(BODY))]


def test_without_any_name_a_file_comes_in_one_piece(file: ServedFile, target: Path) -> None:
    file.etag = None
    assert leave(file, target) == 0
    get(file, target)
    assert file.asked == [(0, FIRST), None]
    target.unlink()
    file.asked.clear()
    small = msgspec.structs.replace(Fetch(url=file.url, target=target))
    file.body = BODY[:FIRST]
    assert fetch(small, Work()).size == FIRST
    assert file.asked == [(0, FIRST)]


def test_without_any_name_but_with_a_checksum(file: ServedFile, target: Path) -> None:
    file.etag = None
    kept = leave(file, target, sha256=file.sha256)
    get(file, target, sha256=file.sha256)
    assert ranges(file) == [(kept, len(BODY))]
    target.unlink()
    leave(file, target, sha256=file.sha256)
    file.body, wanted = OTHER, file.sha256
    with pytest.raises(ChecksumError):
        get(file, target, sha256=wanted)
    assert list(target.parent.iterdir()) == []


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
    get(file, target)
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
            self.waits.append(round(seconds))


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
    assert 17 <= work.waits[0] <= 20
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


# ---- what lies on the disk


def test_after_a_restart_of_the_machine(file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes may be lost that the journal speaks of: what counts is the beginning whose SHA-256 stands there."""
    kept = leave(file, target)
    monkeypatch.setattr(part_module, "_boot", lambda: 1)
    get(file, target)
    assert ranges(file)[0][0] in range(kept - MB, kept + 1)
    target.unlink()
    for damage in (100, 3 * MB - 200_000):
        leave(file, target)
        with open(part_of(target), "r+b") as part:
            part.seek(damage)
            part.write(b"garbage")
        monkeypatch.setattr(part_module, "_boot", lambda: 2)
        get(file, target)
        target.unlink()
        monkeypatch.setattr(part_module, "_boot", lambda: 1)
    leave(file, target)
    os.truncate(part_of(target), 2 * MB)
    get(file, target)


def test_bytes_that_went_bad_are_found_by_the_checksum(file: ServedFile, target: Path) -> None:
    leave(file, target, sha256=file.sha256)
    with open(part_of(target), "r+b") as part:
        part.seek(MB)
        part.write(b"garbage")
    get(file, target, sha256=file.sha256)
    assert ranges(file)[-1] == (FIRST, len(BODY))


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"nonsense", b'{"done": [[0, 99999999999]]}', b'{"done": [[5, 1]]}', b'{"done": [[-5, 1]]}',
     b'{"done": [[0, 4000000], [1, 2]], "ranges": true, "size": 6291456, "validator": "x"}', b'{"size": "x"}',
     b'{"done": [[0, 3000000]], "ranges": true, "size": 5, "validator": "x"}'],
)  # fmt: skip
def test_journals_that_are_none(file: ServedFile, target: Path, text: bytes) -> None:
    leave(file, target)
    journal_of(target).write_bytes(text)
    assert peek(target) in (None, (0, None))
    get(file, target)


def test_a_journal_without_its_part(file: ServedFile, target: Path) -> None:
    leave(file, target)
    part_of(target).unlink()
    assert peek(target) is None
    get(file, target)


@pytest.mark.skipif(os.name != "posix", reason="links, pipes")
def test_planted_parts_are_not_taken_for_ours(file: ServedFile, target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for plant in ("symlink", "link", "pipe"):
        for name in (part_of(target), journal_of(target)):
            leave(file, target)
            content = name.read_bytes()
            victim.write_bytes(content)
            name.unlink()
            if plant == "pipe":
                os.mkfifo(name)
            else:
                getattr(os, plant)(victim, name)
            get(file, target)
            assert victim.read_bytes() == content
            target.unlink()
    part_of(target).mkdir()
    with pytest.raises(FileSystemError):
        get(file, target)
    part_of(target).rmdir()


def test_bytes_are_written_once(target: Path) -> None:
    """What is hashed already must not change any more."""
    part = part_module.Part(target, None, None)
    part.write(10, memoryview(b"a" * 10))
    part.write(5, memoryview(b"b" * 10))
    part.write(0, memoryview(b"c" * 30))
    assert part.journal.done == [(0, 30)]
    assert part.beginning(99) == b"c" * 5 + b"b" * 5 + b"a" * 10 + b"c" * 10
    part.close()
    assert part.write(0, memoryview(b"d")) is False
    part.throw_away()


# ---- a target that is there already


def test_a_target_that_is_there_is_not_fetched_again(file: ServedFile, target: Path) -> None:
    leave(file, target)  # of no use any more
    target.write_bytes(BODY)
    phases: list[str] = []
    seen: list[tuple[int, int | None]] = []
    get(file, target, Work(lambda *state: seen.append(state), phases.append), sha256=file.sha256, size=len(BODY))
    get(file, target)
    assert begin(Fetch(url=file.url, target=target), Work()) == len(BODY)
    assert file.asked == []
    assert phases == ["verifying"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert len(seen) > 5


@pytest.mark.parametrize("promise", [{"size": len(BODY)}, {"sha256": ""}])
def test_a_target_that_breaks_its_promise_is_fetched(file: ServedFile, target: Path, promise: dict[str, Any]) -> None:
    target.write_bytes(BODY[:-1])
    get(file, target, **(promise if promise.get("size") else {"sha256": file.sha256}))
    assert file.asked


def test_a_target_that_is_no_file(file: ServedFile, target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    target.symlink_to(victim)
    get(file, target)
    assert victim.read_bytes() == b"mine"
    assert not target.is_symlink()


def test_looking_through_a_target_can_be_cancelled(file: ServedFile, target: Path) -> None:
    target.write_bytes(BODY)
    work = Work(lambda done, _: work.cancel())
    with pytest.raises(DownloadError) as caught:
        get(file, target, work, sha256=file.sha256)
    assert is_cancelled(caught.value)
    assert target.exists()


def test_hashing_again_can_be_cancelled(file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(file, target, at=2 * len(BODY), sha256=file.sha256)
    work = Work(phase=lambda phase: work.cancel() if phase == "verifying" else None)
    with pytest.raises(DownloadError) as caught:
        get(file, target, work, sha256=file.sha256)
    assert is_cancelled(caught.value)
    assert peek(target) == (len(BODY), len(BODY))
    get(file, target, sha256=file.sha256)
    assert file.asked == []


# ---- looks from elsewhere


def test_another_process_sees_how_far_it_is(server: FileServer, file: ServedFile, target: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from genai_notebook.core.downloads.fetch import peek
        for line in sys.stdin:
            print(peek(Path(sys.argv[1])), flush=True)
    """
    looks: list[Any] = []
    reached = threading.Event()
    file.before = lambda sent: void(sent >= 3 * MB and (reached.set(), server.hold.wait(30)))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin
        assert other.stdout
        getting = threading.Thread(target=get, args=(file, target))
        getting.start()
        while not reached.is_set() or not looks or (looks[-1] or (0, 0))[0] < 2 * MB:
            other.stdin.write("\n")
            other.stdin.flush()
            looks.append(eval(other.stdout.readline()))
        server.hold.set()
        getting.join()
        other.stdin.close()
    seen = [look for look in looks if look is not None]
    assert looks[-len(seen) :] == seen  # once there is a download, it is seen
    assert seen == sorted(seen)
    assert seen[-1][1] == len(BODY)


def test_a_journal_is_read_whole_while_it_is_written(target: Path) -> None:
    part = part_module.Part(target, None, None)
    part.describe(1 << 40, '"x"', ranges=True)
    stop = threading.Event()

    def write() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            part.journal.done = [(0, at), (10**9, 10**9 + at % 7 * 10**6)][: 1 + (at % 7 > 0)]
            part._note()

    writer = threading.Thread(target=write)
    writer.start()
    looks = [peek(target) for _ in range(500)]
    stop.set()
    writer.join()
    part.throw_away()
    assert None not in looks


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
