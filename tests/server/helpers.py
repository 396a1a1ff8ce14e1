"""Waiting, on the loop that the server under test runs on."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 20.0) -> Any:
    """What `condition()` returns once that is true; it may be a coroutine function. The limit only ends what hangs."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < end, f"{what} did not come true"
        await asyncio.sleep(0.02)
