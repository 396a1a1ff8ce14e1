"""Named events with listeners: `on`, `once`, `off`, as the managers offer them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from pyee.base import EventEmitter

from genai_notebook.core.callbacks import Callback, deliver_here
from genai_notebook.errors import InvalidRequestError

SERVER_EVENTS = ("started", "stopped", "crashed", "binary-log", "binary-progress")


class Events:
    """Listeners by event name. A listener runs on the loop it was registered on, or on the callback thread.

    Listeners may be added and removed from any thread; `emit` never waits for them.
    """

    def __init__(self, names: Iterable[str] = SERVER_EVENTS) -> None:
        self._names = tuple(names)
        self._emitter = EventEmitter()
        self._wrapped: dict[tuple[str, Callback], list[Callback]] = {}
        self._lock = threading.Lock()

    def on(self, event: str, listener: Callback) -> None:
        self._add(event, listener, deliver_here(listener))

    def once(self, event: str, listener: Callback) -> None:
        deliver = deliver_here(listener)

        def one_time(*args: Any) -> None:
            if self._remove(event, listener, one_time):
                deliver(*args)

        self._add(event, listener, one_time)

    def off(self, event: str, listener: Callback) -> None:
        """Remove one registration of `listener`; a listener that was never added is no error."""
        self._check(event)
        self._remove(event, listener)

    def emit(self, event: str, *args: Any) -> None:
        self._emitter.emit(event, *args)

    def _add(self, event: str, listener: Callback, wrapper: Callback) -> None:
        self._check(event)
        with self._lock:
            self._wrapped.setdefault((event, listener), []).append(wrapper)
            self._emitter.add_listener(event, wrapper)

    def _remove(self, event: str, listener: Callback, wrapper: Callback | None = None) -> bool:
        with self._lock:
            wrappers = self._wrapped.get((event, listener), [])
            chosen = wrapper if wrapper is not None else (wrappers[-1] if wrappers else None)
            if chosen is None or chosen not in wrappers:
                return False
            wrappers.remove(chosen)
            if not wrappers:
                del self._wrapped[event, listener]
            self._emitter.remove_listener(event, chosen)
            return True

    def _check(self, event: str) -> None:
        if event not in self._names:
            raise InvalidRequestError(
                f"There is no event {event!r}.",
                {"field": "event", "valid": list(self._names)},
                hint="Events: " + ", ".join(self._names) + ".",
            )
