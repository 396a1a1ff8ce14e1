"""What a worker thread carries: a way to be cancelled, and a way to say how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from genai_notebook.errors import DownloadError

Report = Callable[[int, "int | None"], None]


def cancelled_error() -> DownloadError:
    """What a waiting download raises after `cancel_download`; `details["reason"]` is 'cancelled'."""
    return DownloadError("The download was cancelled.", {"reason": "cancelled"})


def is_cancelled(error: BaseException) -> bool:
    """Whether `error` says that a download was cancelled."""
    return isinstance(error, DownloadError) and (error.details or {}).get("reason") == "cancelled"


class Work:
    """One piece of blocking work on a thread of its own.

    The work calls `check` between its steps, or registers with `on_cancel` what wakes it from a blocking call. `report`
    is called with the bytes done and the total, or None while that is unknown.
    """

    def __init__(self, report: Report | None = None, phase: Callable[[Any], None] | None = None) -> None:
        self._report = report
        self._phase = phase
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._wakers: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the work to end. Thread-safe, idempotent, returns at once."""
        with self._lock:
            self._cancelled.set()
            wakers = list(self._wakers.values())
        for wake in wakers:
            wake()

    def check(self) -> None:
        """Raises:
        DownloadError: the work was cancelled.
        """
        if self._cancelled.is_set():
            raise cancelled_error()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the cancellation; errors as `check`."""
        self._cancelled.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def on_cancel(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` (from any thread) when the work is cancelled inside of the block, or was before it."""
        with self._lock:
            key = self._next
            self._next += 1
            self._wakers[key] = wake
            late = self._cancelled.is_set()
        try:
            if late:
                wake()
            yield
        finally:
            with self._lock:
                del self._wakers[key]

    def report(self, downloaded: int, total: int | None) -> None:
        if self._report is not None:
            self._report(downloaded, total)

    def enter(self, phase: str) -> None:
        """Say what the work does now: queued, running, verifying."""
        if self._phase is not None:
            self._phase(phase)
