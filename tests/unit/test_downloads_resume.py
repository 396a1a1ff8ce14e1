"""What an earlier try has left is used again: as far as it is sure to belong to the same file, and no further."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genai_notebook.core.downloads import connection as connection_module
from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import transfer as transfer_module
from genai_notebook.core.downloads.fetch import FIRST, Fetch, begin, fetch, peek
from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import ChecksumError, DownloadError
from tests.downloads import MB, get, leave, ranges
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


def test_a_part_that_is_whole_needs_no_server(file: ServedFile, target: Path) -> None:
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
    file.body = BODY[:FIRST]
    get(file, target)
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
