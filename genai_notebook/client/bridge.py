"""One background event loop per process, and the ways into it.

The kernel's Runtime, local or remote, lives on this loop, so that work goes on while a cell computes and so that code
that cannot await (magics, widgets, scripts) has somewhere to wait for. No nest_asyncio: the caller's own loop, if it
has one, is never entered twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

#: How long a wait lasts before Python gets a chance to see Ctrl-C or the Interrupt button, in seconds.
SLICE = 0.2
#: How long an interrupted or timed-out `run` lets the cancelled work tidy up, in seconds.
TIDY = 5.0


class _Background:
    """The loop and its thread; replaced after a fork, because threads do not survive one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None or self.loop.is_closed():
                self.loop = asyncio.new_event_loop()
                threading.Thread(target=self.loop.run_forever, name="genai-notebook-loop", daemon=True).start()
            return self.loop


_background = _Background()


def _after_fork() -> None:
    global _background
    _background = _Background()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def background_loop() -> asyncio.AbstractEventLoop:
    """The process's background event loop; started at the first call, on a daemon thread."""
    return _background.start()


def on_background_loop() -> bool:
    """Whether the code that calls this runs on the background loop."""
    try:
        return asyncio.get_running_loop() is _background.loop
    except RuntimeError:
        return False


async def call_in_background(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await `work()` on the background loop, from whichever loop this is awaited on. Cancelling passes through."""
    if on_background_loop():
        return await work()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), background_loop()))


def run(awaitable: Awaitable[T], timeout: float | None = None) -> T:
    """Wait for `awaitable` and return its result; from a script, a magic or a widget, on any thread but the loop's own.

    Args:
        awaitable: typically a call of one of the handles, e.g. ``run(llama_server.stop())``.
        timeout: seconds; None waits for ever.

    Raises:
        KeyboardInterrupt: the wait was interrupted; the work has been cancelled.
        TimeoutError: it took longer than `timeout`; the work has been cancelled.
        RuntimeError: called on the background loop itself, where waiting would never end.
    """
    if on_background_loop():
        _close(awaitable)
        raise RuntimeError("run() would wait for the event loop it runs on; use await here.")
    loop = background_loop()
    waiter: _Waiter[T] = _Waiter(awaitable)
    loop.call_soon_threadsafe(waiter.start)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while not waiter.wait(SLICE if deadline is None else min(SLICE, max(0.0, deadline - time.monotonic()))):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"no result within {timeout:g} s")
    except (KeyboardInterrupt, TimeoutError):
        loop.call_soon_threadsafe(waiter.cancel)
        waiter.wait(TIDY)
        raise
    return waiter.outcome.result()


class _Waiter(Generic[T]):
    """Runs one awaitable on the loop and holds its outcome for another thread.

    `asyncio.run_coroutine_threadsafe` is not enough: its future counts as cancelled before the work has tidied up.
    """

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self.awaitable = awaitable
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.task: asyncio.Task[T | None] | None = None

    def start(self) -> None:
        self.task = asyncio.ensure_future(self._await())
        self.task.add_done_callback(self._finish)

    async def _await(self) -> T | None:
        try:
            return await self.awaitable
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio would let these out of the loop and end its thread, and with it everything that runs there.
            self.outcome.set_exception(error)
            return None

    def _finish(self, task: asyncio.Task[T | None]) -> None:
        if self.outcome.done():
            return
        if task.cancelled():
            self.outcome.set_exception(asyncio.CancelledError())
        elif error := task.exception():
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(cast("T", task.result()))

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def wait(self, seconds: float) -> bool:
        return bool(concurrent.futures.wait([self.outcome], seconds).done)


def _close(awaitable: Any) -> None:
    if asyncio.iscoroutine(awaitable):
        awaitable.close()
