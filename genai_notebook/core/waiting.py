"""Waiting with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Await `work` for at most `seconds` (None: without a limit).

    `asyncio.wait_for` would do from Python 3.12 on. Before, it loses a cancellation that arrives in the same moment as
    the result: an interrupted cell, or a start that somebody stops, would go on.

    Raises:
        asyncio.TimeoutError: it took longer; `work` has been cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():  # too late, or this wait itself was cancelled
            task.cancel()
            await asyncio.wait({task})
        if task.done() and not task.cancelled():
            task.exception()  # seen, also where the cancellation is what the caller gets
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
