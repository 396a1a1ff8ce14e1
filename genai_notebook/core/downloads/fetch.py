"""Bytes from a URL into a file: resumed, over as many connections as help, hashed on the way, renamed when whole.

The first request asks for the first 64 KiB: it tells the size, whether the server takes ranges, and lets `inspect`
judge the beginning before the body. What has arrived stays in `<target>.part` (see `part`) when a download fails, is
cancelled or killed; the next one goes on there, if the server still has the same file.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from genai_notebook.core.downloads.connection import CONNECT_LIMIT, STALL_LIMIT, Client, PassingError, Reply
from genai_notebook.core.downloads.disk import ensure_space, write_error
from genai_notebook.core.downloads.hashing import hash_file
from genai_notebook.core.downloads.part import ChangedError, Part, discard, read_journal
from genai_notebook.core.downloads.ranges import (
    asked,
    check_encoding,
    contradicts,
    other_range,
    range_headers,
    range_of,
    read,
    validator_of,
)
from genai_notebook.core.downloads.transfer import CHUNK, PROGRESS, Transfer
from genai_notebook.core.downloads.urls import check_url, without_credentials
from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import ChecksumError, DownloadError, GenaiNotebookError

#: Tries without a new byte before a download is given up, and the first wait between two; it doubles.
RETRIES, BACKOFF, LONGEST_WAIT = 4, 0.5, 60.0
#: How often a download begins: again from nothing when the server's file changed, or cannot be had in parts.
BEGINNINGS = 3
#: What the first request asks for, and the most that is read for a header.
FIRST, MAX_HEAD = 64 << 10, 64 << 20
#: A body of unknown length is weighed against the disk each time that much has come.
_SPACE_CHECK = 64 << 20
_ANOTHER = "The file there is another one than was expected: look at its source again."

T = TypeVar("T")
#: Gets the first bytes of the body; True: satisfied, False: it wants more of them. It raises to refuse the download.
Inspect = Callable[[bytes], bool]


class Fetch(Struct, kw_only=True):
    """What to fetch. `size` and `sha256` (bare hex) are promises that must hold, where given."""

    url: str
    target: Path
    headers: dict[str, str] = {}
    size: int | None = None
    sha256: str | None = None
    inspect: Inspect | None = None
    stall_limit: float = STALL_LIMIT
    connect_limit: float = CONNECT_LIMIT


class Fetched(Struct, kw_only=True):
    path: Path
    size: int
    sha256: str
    url: str


class Head(Struct, kw_only=True):
    """The first bytes of a file elsewhere, and its size, where the server tells."""

    data: bytes
    size: int | None


def fetch(request: Fetch, work: Work) -> Fetched:
    """Download `request.url` to `request.target`. Blocks; run it on a worker thread.

    A target that is there already, and keeps the promises, is not fetched again: a process was killed after its last
    step, before anybody took the file away.

    Raises:
        DownloadError: no connection, no success, a stall, a wrong length, a refused redirect, cancelled.
        ChecksumError: all arrived, but not what was promised; the file is gone.
        InsufficientResourcesError: the disk is full, or would be.
        FileSystemError: the file cannot be written.
    """
    check_url(request.url)
    return _arrived(request, work) or _attempts(request, work, _Download.run)


def begin(request: Fetch, work: Work) -> int | None:
    """Fetch the first bytes only, and let `request.inspect` judge them; `fetch` goes on behind them.

    Returns the file's size, where the server tells. Errors as `fetch`.
    """
    check_url(request.url)
    size = _size_of(request.target)
    if size is not None and request.size in (None, size):
        return size
    return _attempts(request, work, _Download.begin)


def peek(target: Path) -> tuple[int, int | None] | None:
    """How far the download of `target` is, another process's too: bytes, and the size; None if there is none."""
    journal = read_journal(target)
    return None if journal is None else (sum(end - start for start, end in journal.done), journal.size)


def read_head(url: str, headers: dict[str, str], enough: Callable[[bytes], bool], work: Work) -> Head:
    """The first bytes of a file elsewhere: 64 KiB, and more while they are not `enough`. Errors as `fetch`."""
    check_url(url)
    client, shown = Client(url, headers), without_credentials(url)
    data, size, validator = bytearray(), None, None
    buffer = memoryview(bytearray(FIRST))
    try:
        with work.on_cancel(client.end):
            while True:
                wanted = max(FIRST, 4 * len(data))
                reply = asked(client, range_headers(len(data), wanted, validator), work)
                try:
                    if reply.status == 416:
                        return Head(data=bytes(data), size=len(data))  # there is nothing behind it
                    check_encoding(reply, shown)
                    start, size = range_of(reply) if reply.status == 206 else (0, reply.length)
                    validator = validator_of(reply)
                    if start not in (0, len(data)):
                        raise other_range(shown)
                    del data[start:]
                    before = len(data)
                    while len(data) < wanted and (count := read(reply, buffer[: wanted - len(data)], work)):
                        data += buffer[:count]
                finally:
                    reply.close()
                work.check()
                over = len(data) == before or len(data) >= MAX_HEAD or (size is not None and len(data) >= size)
                if enough(bytes(data)) or over:
                    return Head(data=bytes(data), size=size)
    finally:
        client.close()


class _Download:
    """One try at a file, from whatever an earlier one has left."""

    def __init__(self, request: Fetch, work: Work) -> None:
        self.request = request
        self.work = work
        self.shown = without_credentials(request.url)
        self.client = Client(
            request.url, request.headers, stall_limit=request.stall_limit, connect_limit=request.connect_limit
        )
        self.part = Part(request.target, request.size, request.sha256)
        self.size = self.part.journal.size
        #: Whether the file can be had in parts that are sure to belong together; None: not known yet.
        self.ranges: bool | None = True if self.part.kept else None
        #: Where it cannot: the one answer that brings it all.
        self._rest: Reply | None = None
        self._buffer = memoryview(bytearray(CHUNK))
        #: Whether `inspect` has refused the beginning.
        self._refused = False

    def close(self) -> None:
        if self._rest is not None:
            self._rest.close()
        self.client.close()
        self.part.close()

    def is_useless(self, error: GenaiNotebookError) -> bool:
        """Whether no later try could go on from what is here."""
        if self._refused or self.ranges is False or not self.part.done:
            return True
        reason = (error.details or {}).get("reason")
        return reason in ("length", "range", "encoding") and not isinstance(error, PassingError)

    def run(self) -> Fetched:
        self.begin()
        size = self._body()
        self.work.check()
        self.work.enter("verifying")
        actual = self.part.digest(size, self.work)
        if self.request.sha256 is not None and actual != self.request.sha256:
            raise ChecksumError(self.request.sha256, actual)
        self.part.complete()
        self.work.report(size, size)
        return Fetched(path=self.request.target, size=size, sha256=actual, url=self.client.url)

    # ---- the beginning

    def begin(self) -> int | None:
        """The first bytes, judged; afterwards size, ranges and validator are known, if the server tells them."""
        self.work.enter("running")
        self.work.report(self.part.done, self.size)
        wanted = FIRST
        while True:
            self._bring(wanted)
            if self._judged():
                return self.size
            wanted *= 4

    def _whole(self) -> bool:
        return self.size is not None and self.part.front >= self.size

    def _bring(self, wanted: int) -> None:
        """The first `wanted` bytes, or all there are."""
        failures = 0
        while self.part.front < wanted and not self._whole():
            before = self.part.front
            try:
                if self._rest is not None:
                    self._read_on(wanted)
                elif self.ranges is None:
                    self._introduce(wanted)
                else:
                    self._ask_for(before, wanted)
            except PassingError as error:
                if self.ranges is False:
                    raise
                failures = 1 if self.part.front - before >= PROGRESS else failures + 1
                self._retry(failures, error)

    def _judged(self) -> bool:
        """Whether the beginning that is here satisfies `inspect`.

        Raises:
            DownloadError: `inspect` refuses it, or it has no end.
        """
        if self.request.inspect is None:
            return True
        self._refused = True
        satisfied = self.request.inspect(self.part.beginning(MAX_HEAD))
        if not (satisfied or self._whole()) and self.part.front >= MAX_HEAD:
            raise DownloadError(f"{self.shown} has no end to its header.", {"reason": "not-a-model"}, hint=_ANOTHER)
        self._refused = False
        return satisfied or self._whole()

    def _introduce(self, end: int) -> None:
        """The first request: it shows what the file and the server are like."""
        reply = asked(self.client, range_headers(0, end, None), self.work)
        try:
            if reply.status != 200 and not self._is_useful(reply, end):
                reply.close()
                reply = asked(self.client, {}, self.work)
                if reply.status != 200:
                    raise other_range(self.shown)
            check_encoding(reply, self.shown)
            size = range_of(reply)[1] if reply.status == 206 else reply.length
            promised = self.request.size
            if size is not None and promised is not None and size != promised:
                raise DownloadError(
                    f"{self.shown} has {size} bytes, {promised} were promised.", {"reason": "length"}, hint=_ANOTHER
                )
            self.size = size if size is not None else promised
            validator = validator_of(reply)
            self.ranges = reply.status == 206 and (validator is not None or self.request.sha256 is not None)
            self.part.describe(self.size, validator, ranges=self.ranges)
            if not self.ranges:
                self._rest = reply
                self._read_on(end)
            else:
                self._take(reply, 0, end)
        finally:
            if reply is not self._rest:
                reply.close()

    def _is_useful(self, reply: Reply, end: int) -> bool:
        """Whether an answer to the first request is what we asked for, and the rest can be had in the same way: with
        something that tells whether all of it belongs together."""
        start, size = range_of(reply)
        if reply.status != 206 or start != 0 or size is None:
            return False
        return size <= end or validator_of(reply) is not None or self.request.sha256 is not None

    def _ask_for(self, begin: int, end: int) -> None:
        reply = self._open(begin, end)
        try:
            self._take(reply, begin, end)
        finally:
            reply.close()

    def _take(self, reply: Reply, at: int, end: int) -> None:
        first = at
        while at < end and (count := read(reply, self._buffer[: end - at], self.work)):
            self.part.write(at, self._buffer[:count])
            at += count
            self.work.report(self.part.done, self.size)
        if at == first:
            raise PassingError(f"{self.shown} sends nothing.", {"reason": "length"}, hint="Try again later.")

    def _read_on(self, wanted: int) -> None:
        """More of the one body there is."""
        assert self._rest is not None
        at = self.part.front
        while at < wanted:
            count = read(self._rest, self._buffer[: wanted - at], self.work)
            if not count:
                self._end_at(at)
                return
            if self.size is not None and at + count > self.size:
                raise DownloadError(
                    f"{self.shown} sends more than the {self.size} bytes promised.", {"reason": "length"}, hint=_ANOTHER
                )
            if self.size is None and at // _SPACE_CHECK != (at + count) // _SPACE_CHECK:
                ensure_space(self.part.target.parent, _SPACE_CHECK)
            self.part.write(at, self._buffer[:count])
            at += count
            self.work.report(at, self.size)

    def _end_at(self, size: int) -> None:
        if self.size is not None and size < self.size:
            raise PassingError(
                f"The download of {self.shown} ended after {size} of {self.size} bytes.",
                {"reason": "length"},
                hint="Try again later.",
            )
        self.size = size  # only now is it known

    # ---- the rest

    def _body(self) -> int:
        """Everything that is missing; returns the file's size."""
        ensure_space(self.part.target.parent, max(0, (self.size or 0) - self.part.done))
        self.part.follow()
        while self._rest is not None and not self._whole():
            self._read_on(self.part.front + _SPACE_CHECK)
        assert self.size is not None
        if self.part.done < self.size:
            Transfer(self.part, self.size, self.work, self._open, self._retry, self.client.end).run()
        return self.size

    def _open(self, begin: int, end: int) -> Reply:
        """The answer to a request for bytes from `begin` to before `end`, held against what is known of the file.

        Raises:
            ChangedError: it is another file than before.
            DownloadError: as `Client.get`, or the server contradicts itself.
        """
        validator = self.part.journal.validator
        reply = asked(self.client, range_headers(begin, end, validator), self.work)
        try:
            check_encoding(reply, self.shown)
            if reply.status != 206:
                raise ChangedError  # If-Range did not hold, the file is shorter now, or there are no ranges any more
            start, size = range_of(reply)
            if start != begin:
                raise other_range(self.shown)
            if size not in (None, self.size) or contradicts(reply, validator):
                raise ChangedError
        except BaseException:
            reply.close()
            raise
        return reply

    def _retry(self, failures: int, error: PassingError) -> None:
        """Wait before the next try, or give up.

        Raises:
            PassingError: `error`, after too many failures in a row, or when the server asks for too long a wait.
        """
        if failures > RETRIES or ((error.details or {}).get("reason") == "unreachable" and not self.part.done):
            raise error
        wait = BACKOFF * 2 ** (failures - 1) if error.wait is None else error.wait
        if wait > LONGEST_WAIT:
            error.hint = f"The server asks to come back in {wait / 60:.0f} minutes."
            raise error
        self.work.sleep(wait)


def _arrived(request: Fetch, work: Work) -> Fetched | None:
    """The target, where it is there and keeps the promises; what does not keep them is removed."""
    size = _size_of(request.target)
    if size is None:
        return None
    try:
        if request.size in (None, size):
            work.enter("verifying")
            actual = hash_file(request.target, work, size)
            if request.sha256 in (None, actual):
                discard(request.target)
                work.report(size, size)
                return Fetched(path=request.target, size=size, sha256=actual, url=request.url)
        request.target.unlink()
    except OSError as error:
        raise write_error(error, request.target) from error
    return None


def _size_of(path: Path) -> int | None:
    """The size of a regular file, no link; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _attempts(request: Fetch, work: Work, step: Callable[[_Download], T]) -> T:
    """`step`, again where another beginning may help, and everything closed and tidy afterwards."""
    wait = 0.0
    for left in reversed(range(BEGINNINGS)):
        work.sleep(wait)
        wait = 0.0
        download = _Download(request, work)
        try:
            with work.on_cancel(download.client.end):
                return step(download)
        except ChangedError:
            download.part.throw_away()
        except ChecksumError:
            # Old bytes may be to blame, which a crash of the machine garbled: then once more, from nothing.
            resumed = download.part.kept
            download.part.throw_away()
            if not resumed:
                raise
        except GenaiNotebookError as error:
            if download.is_useless(error):
                download.part.throw_away()
            if not (isinstance(error, PassingError) and download.ranges is False and left):
                raise
            wait = min(error.wait or BACKOFF, LONGEST_WAIT)
        finally:
            download.close()
    raise DownloadError(
        f"{without_credentials(request.url)} changes all the time.",
        {"reason": "changed"},
        hint="Wait until it is whole there, then try again.",
    )
