"""One process at a time: a file lock that can be waited for on a worker thread, and given up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import FileSystemError

#: Seconds between looks at a lock that somebody else holds.
_POLL = 0.1


@contextlib.contextmanager
def locked(path: Path, work: Work, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `path` for the length of the block; the system lets it go when the process ends, however it does.

    Args:
        waiting: called again and again while somebody else holds it.

    Raises:
        DownloadError: the work was cancelled while it waited.
        FileSystemError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if waiting is not None:
                waiting()
            work.sleep(_POLL)
        except OSError as error:
            raise FileSystemError("lock", str(path), error) from error
    try:
        yield
    finally:
        lock.release()
