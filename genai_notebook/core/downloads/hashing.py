"""The SHA-256 of a file, interruptible or while it still arrives, and the forms in which people write checksums."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import FileSystemError, InvalidRequestError

_SHA256 = re.compile(r"(?:sha256[:=-])?([0-9a-f]{64})", re.IGNORECASE)
#: What is read and hashed at once: what the processor's own cache holds.
_CHUNK = 256 << 10
#: How far behind a follower wakes up: for less it is not worth while.
_BEHIND = 1 << 20

#: That many bytes from the beginning of a file have that SHA-256, bare hex.
Mark = tuple[int, str]


def parse_checksum(text: str | None) -> str | None:
    """Bare lowercase hex of ``sha256:<hex>`` or ``<hex>``, in any case; None stays None.

    Raises:
        InvalidRequestError: it is no SHA-256.
    """
    if text is None:
        return None
    match = _SHA256.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(
            "checksum: must be a SHA-256.", {"field": "checksum"}, hint="Write it as sha256:<64 hexadecimal digits>."
        )
    return match[1].lower()


def hash_file(path: Path, work: Work, size: int | None = None) -> str:
    """Bare lowercase hex. Blocks; reports progress where the file's `size` is given.

    Raises:
        FileSystemError: the file cannot be read.
        DownloadError: the work was cancelled.
    """
    digest, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                done += count
                work.check()
                if size is not None:
                    work.report(done, size)
    except OSError as error:
        raise FileSystemError("read", str(path), error) from error
    return digest.hexdigest()


class Follower:
    """Hashes a file from its beginning on a thread of its own, behind those who write it.

    What they have just written comes out of the page cache, so that hashing costs no disk and next to no time.

    Args:
        known: what an earlier try found; `sound` becomes False if it does not hold any more.
    """

    def __init__(self, path: Path, known: Mark | None = None) -> None:
        self.sound = True
        #: How far it is, and what the SHA-256 is there.
        self.mark: Mark = (0, hashlib.sha256().hexdigest())
        self._path, self._known = path, known
        self._digest = hashlib.sha256()
        self._change = threading.Condition()
        self._front = 0
        self._last = False
        self._stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="genai-notebook-sha256", daemon=True)
        self._thread.start()

    def advance(self, front: int) -> None:
        """The file is without gaps up to there."""
        with self._change:
            self._front = max(self._front, front)
            if self._front - self.mark[0] >= _BEHIND:
                self._change.notify_all()

    def finish(self, size: int, work: Work) -> str:
        """The SHA-256 of the first `size` bytes, bare hex; waits for it.

        Raises:
            FileSystemError: the file could not be read.
            DownloadError: the work was cancelled.
        """
        with work.on_cancel(self._wake), self._change:
            self._front, self._last = size, True
            self._change.notify_all()
            self._change.wait_for(lambda: self._stopped)
        self.stop()
        work.check()
        hashed, digest = self.mark
        if self._error is not None or hashed != size:
            raise FileSystemError("read", str(self._path), self._error or OSError("it is not as long as it was"))
        return digest

    def stop(self) -> None:
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def _run(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                buffer = memoryview(bytearray(_CHUNK))
                while (end := self._next()) is not None:
                    while self.mark[0] < end and not self._stopped:
                        self._step(file.readinto(buffer[: self._until(end) - self.mark[0]]), buffer)
        except Exception as error:
            self._error = error
        finally:
            self._wake()

    def _next(self) -> int | None:
        """Wait until there is more to hash; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._last or self._front - self.mark[0] >= _BEHIND)
            done = self._stopped or (self._last and self.mark[0] >= self._front)
            return None if done else self._front

    def _until(self, end: int) -> int:
        """A look back is due exactly where the earlier try ended."""
        known = self._known[0] if self._known is not None else 0
        return known if self.mark[0] < known < end else end

    def _step(self, count: int, buffer: memoryview) -> None:
        if not count:
            raise OSError("the file is shorter than what was written")
        self._digest.update(buffer[:count])
        self.mark = (self.mark[0] + count, self._digest.hexdigest())
        if self._known is not None and self._known[0] == self.mark[0] and self._known != self.mark:
            self.sound = False
            raise OSError("the file is not what was written")
