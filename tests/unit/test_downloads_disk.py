"""What lies on the disk: parts and journals, good, bad and planted; targets that are there already."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.downloads import connection as connection_module
from genai_notebook.core.downloads import fetch as fetch_module
from genai_notebook.core.downloads import part as part_module
from genai_notebook.core.downloads import transfer as transfer_module
from genai_notebook.core.downloads.fetch import FIRST, Fetch, begin, peek
from genai_notebook.core.downloads.part import journal_of, part_of
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import DownloadError, FileSystemError
from tests.downloads import MB, get, leave, ranges, void
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


@pytest.mark.parametrize("broken", ["size", "sha256"])
def test_a_target_that_breaks_its_promise_is_fetched(file: ServedFile, target: Path, broken: str) -> None:
    target.write_bytes(BODY[1:])
    promise: dict[str, Any] = {"size": len(BODY)} if broken == "size" else {"sha256": file.sha256}
    get(file, target, **promise)
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
