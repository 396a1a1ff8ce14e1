"""Calling listeners and progress callbacks that belong to somebody else.

A callback may be a plain or a coroutine function. It runs on its caller's event loop where there is one, else on a
thread kept for callbacks; it never holds up the work that reports to it, and what it raises is logged and forgotten.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger("genai_notebook")

Callback = Callable[..., Any]

_tasks: set[asyncio.Task[Any]] = set()
_lock = threading.Lock()


def deliver_here(callback: Callback) -> Callback:
    """`callback`, made callable from any thread, running on the event loop of whoever calls `deliver_here`.

    Without a running loop here, calls run one after the other on the callback thread.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return deliver_on_thread(callback)
    return deliver_on_loop(callback, loop)


def deliver_on_loop(callback: Callback, loop: asyncio.AbstractEventLoop) -> Callback:
    """`callback`, made callable from any thread, running on `loop`."""

    @functools.wraps(callback)
    def call(*args: Any) -> None:
        try:
            loop.call_soon_threadsafe(_invoke, callback, args)
        except RuntimeError:  # the caller's loop has closed: nobody is left to tell
            log.debug("callback %r dropped: its event loop is closed", callback)

    return call


def deliver_on_thread(callback: Callback) -> Callback:
    """`callback`, running on the callback thread, in the order of its calls."""

    @functools.wraps(callback)
    def call(*args: Any) -> None:
        _thread().submit(_invoke_blocking, callback, args)

    return call


def _invoke(callback: Callback, args: tuple[Any, ...]) -> None:
    try:
        result = callback(*args)
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(_await_logged(result, callback))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
    except Exception:
        log.exception("callback %r failed", callback)


async def _await_logged(awaitable: Any, callback: Callback) -> None:
    try:
        await awaitable
    except Exception:
        log.exception("callback %r failed", callback)


def _invoke_blocking(callback: Callback, args: tuple[Any, ...]) -> None:
    try:
        result = callback(*args)
        if inspect.isawaitable(result):
            asyncio.run(_await_logged(result, callback))
    except Exception:
        log.exception("callback %r failed", callback)


@functools.lru_cache(maxsize=1)
def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "genai-notebook-callbacks")


def _thread() -> ThreadPoolExecutor:
    with _lock:
        return _new_thread()
