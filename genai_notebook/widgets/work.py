"""How a panel works: nothing blocks in a callback, and no error vanishes.

A click is handled on a thread of the kernel that must not wait; what it starts runs on the background loop, and an
error is shown in the panel.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import ipywidgets as widgets

from genai_notebook.display import views
from genai_notebook.errors import GenaiNotebookError

log = logging.getLogger("genai_notebook")

#: Traits are set at most this often while something moves, in seconds.
INTERVAL = 0.1


class Worker:
    """Runs the panel's work on the background loop and shows what went wrong.

    Attributes:
        message: the widget that shows errors; put it where people look.
    """

    def __init__(self) -> None:
        self.message = widgets.HTML()
        self.message.layout.display = "none"
        self._jobs: set[concurrent.futures.Future[Any]] = set()
        self._closed = False

    def start(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run `work()` in the background; a new piece of work takes away an old error message."""
        from genai_notebook.client.bridge import background_loop

        if self._closed:
            return
        self.hide()
        job = asyncio.run_coroutine_threadsafe(self._guarded(work), background_loop())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def on_click(self, button: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Let a click on `button` run `work()`."""
        button.on_click(lambda _: self.start(work))

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # in a widget's callback it would vanish
            self.show(error)

    def show(self, error: BaseException) -> None:
        """Show an error: ours with its hint; any other with its type, and its stack in the log."""
        if isinstance(error, GenaiNotebookError):
            text, hint = error.message, error.hint or ""
        else:
            log.error("a panel's work failed", exc_info=error)
            text, hint = f"{type(error).__name__}: {error}", ""
        color = "var(--jp-error-color1,#b00020)"
        second = f"<div>{views.html(hint)}</div>" if hint else ""
        self.message.value = (
            f'<div role="alert" style="border-left:3px solid {color};padding:2px 8px;line-height:1.4">'
            f"<div>{views.html(text)}</div>{second}</div>"
        )
        self.message.layout.display = None

    def hide(self) -> None:
        if self.message.value:
            self.message.value = ""
            self.message.layout.display = "none"

    def close(self) -> None:
        """End the work that is under way."""
        self._closed = True
        for job in tuple(self._jobs):
            job.cancel()


class Throttle:
    """Says whether it is time for another update."""

    def __init__(self) -> None:
        self._last = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True
