"""What a worker thread carries: a way to be cancelled, and a way to say how far it is."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from genai_notebook.errors import DownloadError

T = TypeVar("T")
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
        self._numbers = itertools.count()

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
            key = next(self._numbers)
            self._wakers[key] = wake
            late = self._cancelled.is_set()
        try:
            if late:
                wake()
            yield
        finally:
            with self._lock:
                del self._wakers[key]

    def abandonable(self, call: Callable[[], T], *, late: Callable[[T], object]) -> T:
        """`call()`, on a thread that is left to itself when the work is cancelled; then `late` gets its result.

        For what cannot be woken: looking up a name, connecting, waiting for an answer.
        """
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                outcome.set_result(call())
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="genai-notebook-connect", daemon=True).start()
        woken = threading.Event()
        outcome.add_done_callback(lambda _: woken.set())
        with self.on_cancel(woken.set):
            woken.wait()
        if self.cancelled:
            outcome.add_done_callback(lambda done: None if done.exception() else late(done.result()))
            raise cancelled_error()
        return outcome.result()

    def reporting(self, report: Report) -> Work:
        """The same work, for a part of it whose progress goes to `report`."""
        part = copy.copy(self)  # one cancellation for both
        part._report = report
        return part

    def phases(self, phase: Callable[[Any], None]) -> Work:
        """The same work, for a part of it whose phases go to `phase`."""
        part = copy.copy(self)
        part._phase = phase
        return part

    def report(self, downloaded: int, total: int | None) -> None:
        if self._report is not None:
            self._report(downloaded, total)

    def enter(self, phase: str) -> None:
        """Say what the work does now: queued, running, verifying."""
        if self._phase is not None:
            self._phase(phase)
