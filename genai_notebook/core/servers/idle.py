"""A clock that runs while nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class IdleClock:
    """Calls `ended` on the loop when it has run for `limit` seconds without being stopped or started anew."""

    def __init__(self, limit: float, ended: Callable[[], object]) -> None:
        self._limit = limit
        self._ended = ended
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin from nought. Needs a running loop."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._limit, self._ended)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
