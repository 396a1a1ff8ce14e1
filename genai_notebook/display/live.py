"""Outputs that change while work goes on: one display handle in a notebook, one line (or a growing text) in a terminal.

`update` may be called from any thread and as often as one likes; at most ten updates a second are sent. `finish` leaves
what is kept: in a notebook it is saved with the cell.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from genai_notebook.display.views import Bundle

T = TypeVar("T")

#: The shortest time between two updates, in seconds: more would only flood the connection to the browser.
INTERVAL = 0.1


def show(bundle: Bundle, metadata: dict[str, Any] | None = None, *, display_id: bool = False) -> Any:
    """Show a MIME bundle as an output of the current cell; with `display_id` returns a handle to change it later."""
    from IPython import display

    publish: Any = display.display
    return publish(bundle, raw=True, metadata=metadata or {}, **({"display_id": True} if display_id else {}))


async def ticking(work: Callable[[], Awaitable[T]], tick: Callable[[], None], every: float = 0.5) -> T:
    """Await `work()` and call `tick()` twice a second meanwhile, so that a clock goes on where nothing is reported."""
    import asyncio  # here, because loading the extension must stay light

    task = asyncio.ensure_future(work())
    try:
        while not (await asyncio.wait([task], timeout=every))[0]:
            tick()
        return await task
    finally:
        if not task.done():
            task.cancel()
            # Its tidying (ending the engine, cancelling the generation) belongs to the wait.
            await asyncio.wait([task])


class Live(Protocol):
    def update(self, bundle: Bundle) -> None: ...
    def finish(self, bundle: Bundle, metadata: dict[str, Any] | None = None) -> None: ...


class _Throttled:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0.0
        self._done = False

    def update(self, bundle: Bundle) -> None:
        with self._lock:
            now = time.monotonic()
            if self._done or now - self._last < INTERVAL:
                return
            self._last = now
            self._show(bundle, {})

    def finish(self, bundle: Bundle, metadata: dict[str, Any] | None = None) -> None:
        with self._lock:
            self._done = True
            self._show(bundle, metadata or {}, last=True)

    def _show(self, bundle: Bundle, metadata: dict[str, Any], *, last: bool = False) -> None:
        raise NotImplementedError


class NotebookLive(_Throttled):
    """One output of the current cell. Must be made by the cell's own thread, so that it lands in that cell."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._handle = show(bundle, display_id=True)

    def _show(self, bundle: Bundle, metadata: dict[str, Any], *, last: bool = False) -> None:
        self._handle.update(bundle, metadata=metadata, raw=True)


class TerminalLive(_Throttled):
    """A line that rewrites itself; where the output is no terminal, only the last state."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._rewrites = sys.stdout.isatty()
        self._show(bundle, {})

    def _show(self, bundle: Bundle, metadata: dict[str, Any], *, last: bool = False) -> None:
        text = bundle.get("text/plain", "")
        if last:
            print(("\r\x1b[K" if self._rewrites else "") + text, flush=True)
        elif self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)


class TerminalText(_Throttled):
    """A text that grows: prints what is new."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = 0

    def _show(self, bundle: Bundle, metadata: dict[str, Any], *, last: bool = False) -> None:
        text = bundle.get("text/plain", "")
        print(text[self._printed :], end="\n" if last else "", flush=True)
        self._printed = len(text)
