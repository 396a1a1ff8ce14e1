"""`genai/events`: what happens in the Runtime, as server-sent events. Ids and states; never prompts, never keys.

A stream begins with a `snapshot` of everything; what follows are the Runtime's events as they happen. Every event
carries a sequence number as its id. A client that reads too slowly loses its backlog and gets a new snapshot instead:
no client can make the server hoard.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.iostream import StreamClosedError

from genai_notebook.core.waiting import within
from genai_notebook.server.base import GenaiHandler
from genai_notebook.server.replies import encode
from genai_notebook.server.servers import public_infos

if TYPE_CHECKING:
    from genai_notebook.core.runtime import Runtime

log = logging.getLogger("genai_notebook")

#: Seconds between comments on a silent stream: proxies keep it open, and lost clients are noticed.
HEARTBEAT = 15.0
_BACKLOG = 1000


class EventStream:
    """One listener's backlog."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._waiting: deque[bytes] = deque([hub.snapshot()])
        self._news = asyncio.Event()
        self._news.set()
        self.closed = False

    def put(self, event: bytes) -> None:
        if len(self._waiting) >= _BACKLOG:
            self._waiting.clear()
            event = self._hub.snapshot()
        self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    async def next(self, timeout: float) -> bytes:
        """What has gathered, or a comment after `timeout` seconds without news."""
        try:
            await within(timeout, self._news.wait())
        except asyncio.TimeoutError:
            return b": still here\n\n"
        self._news.clear()
        gathered = b"".join(self._waiting)
        self._waiting.clear()
        return gathered


class EventHub:
    """Numbers the Runtime's events and hands them to every stream. Lives on the Runtime's event loop."""

    def __init__(self, runtime: Runtime) -> None:
        # Higher than all numbers of the server that was at this address before: clients may have outlived it.
        self.sequence = time.time_ns() // 1_000_000
        self._runtime = runtime
        self._streams: set[EventStream] = set()
        self._unsubscribe: Callable[[], None] = runtime.subscribe(self._publish)

    def open_stream(self) -> EventStream:
        stream = EventStream(self)
        self._streams.add(stream)
        return stream

    def close_stream(self, stream: EventStream) -> None:
        stream.close()
        self._streams.discard(stream)

    def close(self) -> None:
        """End all streams."""
        self._unsubscribe()
        for stream in list(self._streams):
            self.close_stream(stream)

    def snapshot(self) -> bytes:
        state = {
            "servers": public_infos(self._runtime),
            "downloads": self._runtime.model_manager.list_downloads(),
        }
        return self._format("snapshot", state)

    def _publish(self, name: str, data: dict[str, Any]) -> None:
        self.sequence += 1
        if self._streams:
            event = self._format(name, data)
            for stream in self._streams:
                stream.put(event)

    def _format(self, name: str, data: Any) -> bytes:
        return f"id: {self.sequence}\nevent: {name}\ndata: ".encode() + encode(data) + b"\n\n"


class EventsHandler(GenaiHandler):
    """Open until the client leaves or the server stops."""

    _track_activity = False

    def initialize(self) -> None:
        super().initialize()
        self._stream: EventStream | None = None

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self._stream = stream = self.house.events.open_stream()
        try:
            while not stream.closed:
                self.write(await stream.next(HEARTBEAT))
                await self.flush()
        except StreamClosedError:
            log.debug("an event stream's client has left")
        finally:
            self.house.events.close_stream(stream)
        if not self._gone:
            self.finish(set_content_type="text/event-stream")

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._stream is not None:
            self._stream.close()
