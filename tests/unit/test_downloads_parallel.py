"""Several connections for one file: when they help, when one fails, and when all must end."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import gaps as gaps_module
from genai_notebook.core.downloads import transfer as transfer_module
from genai_notebook.core.downloads.fetch import peek
from genai_notebook.core.downloads.gaps import Gaps, free_of, joined
from genai_notebook.core.downloads.hashing import Follower
from genai_notebook.core.downloads.part import Part, part_of, read_journal
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import ChecksumError, DownloadError, FileSystemError, InsufficientResourcesError
from tests.downloads import MB, get, threads_left
from tests.fakes import eventually
from tests.fakes.file_server import FileServer, ServedFile

BODY = os.urandom(4 * MB)
OTHER = os.urandom(4 * MB)


@pytest.fixture
def file(server: FileServer) -> ServedFile:
    """One that a single connection gets at some 1.3 MB/s."""
    file = server.add_file("/a", BODY)
    file.piece, file.pause = 32 << 10, 0.02
    return file


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.001)
    monkeypatch.setattr(transfer_module, "_TICK", 0.01)
    monkeypatch.setattr(transfer_module, "TRIAL", 0.03)
    monkeypatch.setattr(transfer_module, "WORTHWHILE", MB)
    monkeypatch.setattr(gaps_module, "SMALLEST", 64 << 10)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread of ours and no open file, however it ended."""
    before = len(psutil.Process().open_files())
    yield
    eventually(lambda: not threads_left(), f"the end of {threads_left()}")
    eventually(lambda: len(psutil.Process().open_files()) <= before, "the end of all open files")


def test_a_slow_server_is_asked_by_many(file: ServedFile, target: Path) -> None:
    seen: list[int] = []
    get(file, target, Work(lambda done, _: seen.append(done)), sha256=file.sha256)
    assert 4 <= file.most <= transfer_module.CONNECTIONS + 2  # the server still sends to some that are closed
    assert seen == sorted(seen)
    assert file.sent < 1.2 * len(BODY)  # what one connection no longer had to bring was under way


def test_a_fast_server_is_asked_by_one(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "FAST", 0.0)
    file = server.add_file("/a", BODY)
    get(file, target)
    assert file.most == 1
    assert len(file.asked) == 2


def test_a_small_rest_is_left_to_one(file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "WORTHWHILE", 4 * MB)
    file.pause = 0.001
    get(file, target)
    assert file.most == 1


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changes_in_the_middle(file: ServedFile, target: Path, heeds: bool) -> None:
    file.if_range = heeds

    def change(sent: int) -> None:
        if file.body is BODY and file.open > 4 and sent > MB:
            file.change(OTHER)

    file.before = change
    get(file, target)
    assert file.body is OTHER


def test_a_server_that_wants_no_more_than_three(
    file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "BACKOFF", 0.1)  # by then the server knows who is gone
    file.pause = 0.005
    refused = []

    def instead(handler: BaseHTTPRequestHandler, asked: object) -> bool:
        if file.open > 3:
            refused.append(asked)
            handler.wfile.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: 900\r\n\r\n")
        return file.open > 3

    file.instead = instead
    get(file, target)
    assert 0 < len(refused) < 12


def test_after_a_while_one_more_is_tried(file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "CALM", 0.1)
    refused = []

    def instead(handler: BaseHTTPRequestHandler, asked: object) -> bool:
        if file.open > 1 and len(refused) < 7:
            refused.append(asked)
            handler.wfile.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            return True
        return False

    file.instead = instead
    get(file, target)
    assert len(refused) == 7
    assert file.most > 2


def test_connections_that_break_and_stall(server: FileServer, file: ServedFile, target: Path) -> None:
    chance = random.Random(3)
    left = 6

    def trouble(sent: int) -> None:
        nonlocal left
        if sent > MB and left and chance.random() < 0.2:
            left -= 1
            if left == 0:
                server.hold.wait(30)
            raise ConnectionError

    file.before = trouble
    get(file, target, sha256=file.sha256, stall_limit=0.4)


def test_all_fail_at_once(file: ServedFile, target: Path) -> None:
    down = threading.Event()
    file.before = lambda sent: broken() if down.is_set() or (sent > 2 * MB and not down.set()) else None  # type: ignore[func-returns-value]
    with pytest.raises(DownloadError) as caught:
        get(file, target)
    assert caught.value.hint
    kept = peek(target)
    assert kept is not None
    assert kept[0] > MB
    file.before, file.sent = lambda sent: None, 0
    get(file, target)
    assert file.sent < 1.2 * len(BODY) - kept[0]


def broken() -> None:
    raise ConnectionError


def test_cancelled_with_all_at_work(file: ServedFile, target: Path) -> None:
    work = Work(lambda done, _: work.cancel() if done > 2 * MB and file.open > 4 else None)
    with pytest.raises(DownloadError) as caught:
        get(file, target, work)
    assert is_cancelled(caught.value)
    journal = read_journal(target)
    assert journal is not None
    assert len(journal.done) > 2
    eventually(lambda: not file.open)
    missing = free_of(journal.done, 0, len(BODY))
    with open(part_of(target), "rb") as part:
        for begin, end in journal.done:
            part.seek(begin)
            assert part.read(end - begin) == BODY[begin:end]
    file.asked.clear()
    file.pause = 0.0
    get(file, target)
    fetched = joined([asked for asked in file.asked if asked])
    assert [fetched[0][0], fetched[-1][1]] == [missing[0][0], missing[-1][1]]
    assert sum(end - begin for begin, end in fetched) == sum(end - begin for begin, end in missing)


def test_cancelled_while_all_wait_for_answers(server: FileServer, file: ServedFile, target: Path) -> None:
    work = Work()
    asked = threading.Event()

    def instead(handler: BaseHTTPRequestHandler, _: object) -> bool:
        if file.open > 6:
            asked.set()
        return file.open > 1 and not server.hold.wait(30)

    file.instead = instead
    cancelling = threading.Thread(target=lambda: (asked.wait(30), work.cancel()))
    cancelling.start()
    with pytest.raises(DownloadError) as caught:
        get(file, target, work)
    assert is_cancelled(caught.value)
    cancelling.join()
    assert peek(target)
    eventually(lambda: not threads_left(), f"the end of {threads_left()}")  # though the server still holds them all


def test_a_full_disk_ends_them_all(file: ServedFile, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(part: Part, offset: int, view: memoryview) -> None:
        if file.open > 4 and part.done > MB:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, offset, view)

    real = Part._put
    with monkeypatch.context() as patch:
        patch.setattr(Part, "_put", put)
        with pytest.raises(InsufficientResourcesError):
            get(file, target)
    assert threads_left() == []
    assert (peek(target) or (0,))[0] > MB
    get(file, target)


def test_a_wrong_checksum(file: ServedFile, target: Path) -> None:
    with pytest.raises(ChecksumError) as caught:
        get(file, target, sha256="0" * 64)
    assert caught.value.actual == file.sha256
    assert list(target.parent.iterdir()) == []
    get(file, target, sha256=file.sha256)


def test_a_server_whose_ranges_do_not_match(file: ServedFile, target: Path) -> None:
    """It changes its file and says nothing of it: what is hashed is what is there, and the checksum tells."""

    def change(sent: int) -> None:
        if sent > 2 * MB:
            file.body = OTHER  # under the same tag

    file.before, wanted = change, file.sha256
    with pytest.raises(ChecksumError):
        get(file, target, sha256=wanted)
    assert list(target.parent.iterdir()) == []


# ---- who takes what


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200 * MB), st.randoms(use_true_random=False), st.integers(1, 8))
def test_every_byte_is_taken_once(size: int, chance: random.Random, sharers: int) -> None:
    """Whatever fails and however fast each is; what several bring twice stays small."""
    done = joined([tuple(sorted((chance.randrange(size), chance.randrange(size + 1)))) for _ in range(3)])  # type: ignore[misc]
    done = [(begin, end) for begin, end in done if end > begin]
    gaps = Gaps(size, done)
    missing = gaps.missing
    assert missing == size - sum(end - begin for begin, end in done)
    taken: list[Any] = []
    brought = 0
    for step in range(10_000):
        while len(taken) < sharers and (stretch := gaps.take(sharers)):
            taken.append(stretch)
        if not taken:
            break
        stretch = chance.choice(taken)
        count = min(stretch.left, chance.randint(1, 8 * MB))
        done.append((stretch.pos, stretch.pos + count))
        stretch.pos += count
        brought += count
        if step == 2:
            gaps.shorten_all(sharers)
        if not stretch.left or chance.random() < 0.1:
            taken.remove(stretch)
            gaps.give_back(stretch)
    assert gaps.missing == 0
    assert joined(done) == [(0, size)]
    assert brought == missing


def test_stretches() -> None:
    assert joined([(5, 6), (0, 2), (2, 4), (1, 3)]) == [(0, 4), (5, 6)]
    assert free_of([(2, 4), (6, 8)], 0, 10) == [(0, 2), (4, 6), (8, 10)]
    assert free_of([(2, 4), (6, 8)], 3, 7) == [(4, 6)]
    assert free_of([(0, 10)], 2, 8) == free_of([], 3, 3) == []
    assert free_of([(5, 9)], 0, 3) == [(0, 3)]


# ---- the hash that follows


def test_a_follower_reads_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(BODY)
    follower = Follower(path)
    for front in (0, 5, MB, 3 * MB, 2 * MB):
        follower.advance(front)
    digest = follower.finish(len(BODY), Work())
    assert follower.mark == (len(BODY), digest)
    assert Follower(path, follower.mark).finish(len(BODY), Work()) == digest
    bad = Follower(path, (MB, digest))
    with pytest.raises(FileSystemError):
        bad.finish(len(BODY), Work())
    assert not bad.sound
    assert Follower(path).finish(0, Work())[:8] == "e3b0c442"


def test_a_follower_whose_file_is_short_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for prepare in (lambda: None, lambda: path.write_bytes(b"short")):
        prepare()
        follower = Follower(path)
        follower.advance(MB)
        with pytest.raises(FileSystemError):
            follower.finish(MB, Work())
        assert follower.sound


def test_a_follower_is_stopped_in_every_state(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(BODY)
    for front in (0, MB, len(BODY)):
        follower = Follower(path)
        follower.advance(front)
        follower.stop()
        follower.stop()
    work = Work()
    work.cancel()
    with pytest.raises(DownloadError) as caught:
        Follower(path).finish(1 << 40, work)
    assert is_cancelled(caught.value)
