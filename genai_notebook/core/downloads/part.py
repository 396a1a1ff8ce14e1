"""A file that is still arriving: `<target>.part`, and a journal beside it that says which bytes of it hold.

The journal is written after the bytes it speaks of, by one small write, so that a killed process leaves both in order.
It goes with the server's validator: what another version of the file left is not used. A machine that went down may
have lost bytes that the journal speaks of: then what counts is the SHA-256 that is promised, or else the beginning
whose SHA-256 stands in the journal.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from io import FileIO
from pathlib import Path

import msgspec
import psutil

from genai_notebook.core.downloads.disk import write_error
from genai_notebook.core.downloads.gaps import free_of, joined
from genai_notebook.core.downloads.hashing import Follower, Mark
from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import FileSystemError

#: A planted link is not followed, and a planted pipe is not waited for.
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
#: Journals are padded to a multiple of this, and never get shorter: so one write replaces the last, in one piece.
_PAGE = 4096
_MAX_JOURNAL = 1 << 20
#: The journal is written again after that part of the file, but between so and so many bytes, or after so many seconds.
_NOTE_PART, _NOTE_LEAST, _NOTE_MOST, _NOTE_SECONDS = 256, 1 << 20, 8 << 20, 0.1


class ChangedError(Exception):
    """The server's file, or what we have of it, is not what it was: only a new beginning helps."""


class Journal(msgspec.Struct, kw_only=True):
    """What is known of a part. `size`: of the whole file; `done`: stretches that arrived, sorted and apart; `ranges`:
    whether the server can send what is missing, and only that.
    """

    size: int | None = None
    ranges: bool = False
    validator: str | None = None
    sha256: str | None = None
    boot: int = 0
    mark: Mark | None = None
    done: list[tuple[int, int]] = []


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def journal_of(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def read_journal(target: Path) -> Journal | None:
    """The journal of a part, if there is a sound one. Another process may be writing it."""
    try:
        size = os.lstat(part_of(target)).st_size
        text = _read(journal_of(target))
        for _ in range(5):
            before, text = text, _read(journal_of(target))
            if text == before:  # else a write was under way
                break
        journal = msgspec.json.decode(text, type=Journal)
    except (OSError, ValueError):
        return None
    sound = all(0 <= begin < end for begin, end in journal.done) and journal.done == joined(journal.done)
    if not sound or (journal.done and journal.done[-1][1] > (size if journal.size is None else journal.size)):
        return None
    return journal


def discard(target: Path) -> None:
    """Remove part and journal."""
    for path in (journal_of(target), part_of(target)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class Part:
    """An open part. Thread-safe; after `close` nothing more is written.

    Args:
        target: the file it will become.
        size, sha256: what all its bytes are held against in the end, where it is promised.
    """

    def __init__(self, target: Path, size: int | None, sha256: str | None) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._open = True
        self._follower: Follower | None = None
        self._noted, self._unnoted, self._note_bytes = 0.0, 0, 0
        known = read_journal(target)
        try:
            self._file = _open(part_of(target))
            try:
                self._book = _open(journal_of(target))
            except OSError:
                self._file.close()
                raise
            self._pages = os.fstat(self._book.fileno()).st_size // _PAGE
            length = os.fstat(self._file.fileno()).st_size
            if known is not None:
                known.done = _kept(known, length, size, sha256)
            self.journal = known if known is not None and known.done else Journal(size=size)
            self.journal.sha256, self.journal.boot = sha256, _boot()
            if length and not self.journal.done:
                self._file.truncate(0)  # not a new file: ext4 would write it to the disk at once when it is closed
            self._note()
        except OSError as error:
            raise write_error(error, target) from error
        #: Bytes that an earlier try has left.
        self.kept = self.done

    @property
    def done(self) -> int:
        return sum(end - begin for begin, end in self.journal.done)

    @property
    def front(self) -> int:
        """Up to where the file is without gaps."""
        first = self.journal.done[0] if self.journal.done else (0, 0)
        return first[1] if first[0] == 0 else 0

    def describe(self, size: int | None, validator: str | None, *, ranges: bool) -> None:
        """Note what the server says of the file."""
        with self._lock:
            self.journal.size, self.journal.validator, self.journal.ranges = size, validator, ranges

    def write(self, offset: int, data: memoryview) -> bool:
        """Put bytes in their place, except over those that are there: these may be hashed already. False when the part
        is closed.

        Raises:
            InsufficientResourcesError, FileSystemError: the disk refuses them.
        """
        with self._lock:
            if not self._open:
                return False
            try:
                for begin, end in free_of(self.journal.done, offset, offset + len(data)):
                    self._put(begin, data[begin - offset : end - offset])
                    self.journal.done = joined([*self.journal.done, (begin, end)])
                    self._unnoted += end - begin
                if self._unnoted >= self._note_bytes or time.monotonic() - self._noted >= _NOTE_SECONDS:
                    self._note()
            except OSError as error:
                raise write_error(error, self.target, self.journal.size) from error
            front = self.front
        if self._follower is not None:
            self._follower.advance(front)
        return True

    def beginning(self, most: int) -> bytes:
        """The first bytes of the file, as many as have arrived without a gap."""
        with self._lock:
            self._file.seek(0)
            return self._file.read(min(most, self.front)) or b""

    def follow(self) -> None:
        """Hash from the beginning, while the rest arrives."""
        if self._follower is None:
            self._follower = Follower(part_of(self.target), self.journal.mark)
            self._follower.advance(self.front)

    def digest(self, size: int, work: Work) -> str:
        """The SHA-256 of all `size` bytes; waits for it.

        Raises:
            ChangedError: what an earlier try left is not what it was.
            FileSystemError: the file cannot be read.
            DownloadError: the work was cancelled.
        """
        self.follow()
        assert self._follower is not None
        try:
            return self._follower.finish(size, work)
        except FileSystemError:
            if self._follower.sound:
                raise
            raise ChangedError from None

    def close(self) -> None:
        """Keep what is there for another try."""
        if self._follower is not None:
            self._follower.stop()
        with self._lock:
            if not self._open:
                return
            self._open = False
            with contextlib.suppress(OSError):
                self._note()
            self._file.close()
            self._book.close()

    def complete(self) -> None:
        """It is whole: it becomes the target."""
        self.close()
        try:
            os.replace(part_of(self.target), self.target)
        except OSError as error:
            raise write_error(error, self.target) from error
        with contextlib.suppress(OSError):
            journal_of(self.target).unlink()

    def throw_away(self) -> None:
        self.close()
        discard(self.target)

    def _put(self, offset: int, view: memoryview) -> None:
        self._file.seek(offset)
        while (count := self._file.write(view)) < len(view):
            view = view[count:]

    def _note(self) -> None:
        follower = self._follower
        if follower is not None and follower.mark[0] > (self.journal.mark or (0, ""))[0]:
            self.journal.mark = follower.mark
        text = msgspec.json.encode(self.journal)
        self._book.seek(0)
        self._pages = max(self._pages, -(-len(text) // _PAGE))
        self._book.write(text.ljust(self._pages * _PAGE))
        self._noted, self._unnoted = time.monotonic(), 0
        self._note_bytes = min(max((self.journal.size or 0) // _NOTE_PART, _NOTE_LEAST), _NOTE_MOST)


def _kept(journal: Journal, length: int, size: int | None, sha256: str | None) -> list[tuple[int, int]]:
    """What still holds of that which a journal speaks of, for a file with those promises. `length`: of the part."""
    same = journal.ranges and journal.size is not None and size in (None, journal.size)
    if not same or (sha256 is not None and journal.sha256 not in (None, sha256)):
        return []
    if sha256 is None and journal.validator is None:
        return []
    whole = all(end <= length for _, end in journal.done)
    if whole and (sha256 is not None or journal.boot == _boot()):
        return journal.done
    mark = journal.mark[0] if journal.mark is not None else 0
    return [(0, mark)] if 0 < mark <= length else []


def _boot() -> int:
    # The clock may be set between two looks: to ten minutes is near enough.
    return int(psutil.boot_time() / 600)


def _open(path: Path) -> FileIO:
    """A private file, new or ours; whatever else lies at that name, a link too, is removed, not written through."""
    for _ in range(10):
        with contextlib.suppress(FileExistsError):
            return FileIO(os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+")
        try:
            file = FileIO(os.open(path, _FLAGS | os.O_RDWR), "r+")
        except FileNotFoundError:
            continue
        except OSError:
            path.unlink()  # a link, for one; a folder stays, and is an error
            continue
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return file
        file.close()
        path.unlink()
    raise FileExistsError(f"{path} comes back whenever it is removed")


def _read(path: Path) -> bytes:
    with open(os.open(path, _FLAGS | os.O_RDONLY), "rb") as file:
        return file.read(_MAX_JOURNAL)
