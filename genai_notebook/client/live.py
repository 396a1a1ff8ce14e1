"""What the server's event stream tells, kept at hand: so that reading a status costs nothing here either.

Everything the server says carries a sequence number. What is kept is trusted only while it is as new as the newest
answer to a request of ours, and never overwritten by something older: a kernel always reads its own writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from genai_notebook.client.transport import Connection, Reply, ServerEvent, segment
from genai_notebook.core.events import Events
from genai_notebook.core.schema import DiffusionServerInfo, DownloadJob, ServerInfo
from genai_notebook.core.waiting import within
from genai_notebook.errors import GenaiNotebookError, ServerError, error_from_wire

log = logging.getLogger("genai_notebook")

#: Seconds that opening waits for the first snapshot.
FIRST_SNAPSHOT = 5.0
#: Seconds between attempts to reach a lost server.
RETRY_FIRST, RETRY_MOST = 0.25, 10.0
#: Downloads that have ended and are still listed, as on the server.
KEPT_JOBS = 20

Listener = Callable[[str, dict[str, Any]], None]


class _Known:
    """The last that was heard of one server. `complete`: with its API key, which events do not carry."""

    def __init__(self, info: ServerInfo, sequence: int, complete: bool) -> None:
        self.info = info
        self.sequence = sequence
        self.complete = complete


class LiveState:
    """Follows one server's events on the event loop that opens it. Reads are allowed from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._snapshot = asyncio.Event()
        self._known: dict[str, _Known] = {}
        self._told: dict[str, str] = {}
        self._runs: dict[str, ServerInfo] = {}
        self._jobs: dict[str, DownloadJob] = {}
        self._emitters: dict[str, Events] = {}
        self._listeners: list[Listener] = []
        self._news: dict[str, list[asyncio.Queue[dict[str, Any]]]] = {}
        #: Whether the stream is up: only then may a cached state be trusted.
        self.connected = False
        self._position = 0

    async def open(self) -> None:
        """Start following, and wait for the first snapshot, a moment at most."""
        self._loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = self._loop.create_task(self._follow())
        with contextlib.suppress(asyncio.TimeoutError):
            await within(FIRST_SNAPSHOT, self._snapshot.wait())

    async def close(self) -> None:
        task, self._task = self._task, None
        self.connected = False
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event name, data)` on the loop for each event; returns the way to unsubscribe."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # ---- what is known -------------------------------------------------------------------------------------------

    def info(self, server: str, *, complete: bool = True) -> ServerInfo | None:
        """The state of one server, or None where it has to be asked for."""
        known = self._known.get(server)
        if known is None or not self.connected or (complete and not known.complete):
            return None
        return known.info if max(known.sequence, self._position) >= self._connection.heard else None

    def learn(self, server: str, reply: Reply) -> Any:
        """Take over the state that a reply tells, unless events have told something newer. Returns the reply's."""
        info: ServerInfo = reply.as_a(_info_type(server))
        known = self._known.get(server)
        if info.status == "running":
            self._runs[server] = info
        if known is None or reply.sequence >= known.sequence:
            self._known[server] = _Known(info, reply.sequence, complete=True)
        elif not known.complete and _same_run(known.info, info):
            known.info = msgspec.structs.replace(known.info, api_key=info.api_key)
            known.complete = True
        return info

    def jobs(self) -> list[DownloadJob] | None:
        """The downloads, or None where they have to be asked for."""
        fresh = self.connected and self._position >= self._connection.heard
        return list(self._jobs.values()) if fresh else None

    def learn_job(self, job: DownloadJob) -> None:
        self._jobs[job.id] = job
        ended = [id for id, known in self._jobs.items() if known.status in ("complete", "error", "cancelled")]
        for id in ended[:-KEPT_JOBS]:
            self._jobs.pop(id, None)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` on the loop, from any thread, without anybody waiting for it."""
        if self._loop is None:
            work.close()
            raise ServerError("The connection to the Jupyter server is not open.", code="SERVER_UNREACHABLE")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def events(self, server: str) -> Events:
        """The listeners of one server's events."""
        return self._emitters.setdefault(server, Events())

    @contextlib.contextmanager
    def news_of(self, id: str) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """The events of one generation or download, as they come, while the block lasts."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news.setdefault(id, []).append(queue)
        try:
            yield queue
        finally:
            self._news[id].remove(queue)
            if not self._news[id]:
                del self._news[id]

    # ---- following -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                async for event in self._connection.events():
                    delay = RETRY_FIRST
                    await self._take(event)
            except GenaiNotebookError as error:
                log.debug("the event stream is lost: %s", error)
            except Exception:
                log.exception("the event stream failed")
            self.connected = False
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)

    async def _take(self, event: ServerEvent) -> None:
        data = event.data
        await self._take_over(event)
        self._position = event.sequence
        for queue in self._news.get(data.get("id") or "", ()):
            queue.put_nowait(data)
        for listener in list(self._listeners):
            try:
                listener(event.name, data)
            except Exception:
                log.exception("listener %r failed", listener)

    async def _take_over(self, event: ServerEvent) -> None:
        data = event.data
        if event.name == "snapshot":
            await self._take_snapshot(event)
        elif event.name == "status":
            self._take_status(data["server"], data["info"], event.sequence)
        elif event.name == "started":
            await self._emit_started(data["server"])
        elif event.name == "stopped":
            self._emit(data["server"], "stopped", "stopped")
        elif event.name == "crashed":
            self._emit(data["server"], "crashed", "crashed", error_from_wire(data["error"]))
        elif event.name in ("binary-log", "binary-progress"):
            rest = {name: value for name, value in data.items() if name != "server"}
            self.events(data["server"]).emit(event.name, rest)
        elif event.name == "download":
            self.learn_job(msgspec.convert(data, DownloadJob))

    async def _take_snapshot(self, event: ServerEvent) -> None:
        """Start anew from what the server says now; what changed while nobody listened is told to the listeners."""
        self._jobs = {job["id"]: msgspec.convert(job, DownloadJob) for job in event.data["downloads"]}
        previous, self._known = self._known, {}
        for server, wire in event.data["servers"].items():
            self._take_status(server, wire, event.sequence, previous.get(server))
        self._position = event.sequence
        self.connected = True
        self._snapshot.set()
        for server, wire in event.data["servers"].items():
            await self._tell_missed(server, wire["status"], wire.get("error"))

    def _take_status(self, server: str, wire: Any, sequence: int, previous: _Known | None = None) -> None:
        known = self._known.get(server, previous)
        if known is not None and known is not previous and sequence <= known.sequence:
            return
        info = msgspec.convert(wire, _info_type(server))
        complete = info.status in ("stopped", "crashed")
        if info.status == "running" and not _same_run(self._runs.get(server), info):
            self._runs[server] = info
        if known is not None and known.complete and not complete and _same_run(known.info, info):
            info, complete = msgspec.structs.replace(info, api_key=known.info.api_key), True
        self._known[server] = _Known(info, sequence, complete)

    async def _tell_missed(self, server: str, status: str, error: str | None) -> None:
        before = self._told.get(server)
        if before is None:
            self._told[server] = status
        elif before != status and status == "running":
            await self._emit_started(server)
        elif before == "running" and status == "stopped":
            self._emit(server, "stopped", "stopped")
        elif before == "running" and status == "crashed":
            self._emit(server, "crashed", "crashed", ServerError(error or "The engine has ended."))

    async def _emit_started(self, server: str) -> None:
        """Tell the listeners, with the state in which it came up (it may have gone on since) and with its key."""
        info = self._runs.get(server)
        if info is None or info.api_key is None:
            try:
                now = self.learn(server, await self._connection.request("GET", path_of(server)))
            except GenaiNotebookError as error:
                log.debug("the started server cannot be asked: %s", error)
                return
            info = self._runs.get(server, info)  # the answer to our own start may have told the key meanwhile
            if info is None or _same_run(now, info):
                info = now
            elif info.api_key is None and now.port == info.port:
                info = msgspec.structs.replace(info, api_key=now.api_key)
        self._emit(server, "running", "started", info)

    def _emit(self, server: str, status: str, event: str, *args: Any) -> None:
        self._told[server] = status
        self.events(server).emit(event, *args)


def path_of(server: str) -> str:
    """Where a server's routes are, below ``genai/``."""
    return server if server in ("llama", "diffusion") else f"llamas/{segment(server)}"


def _info_type(server: str) -> type[Any]:
    return DiffusionServerInfo if server == "diffusion" else ServerInfo


def _same_run(one: ServerInfo | None, other: ServerInfo) -> bool:
    """Whether both describe the same run of the engine, so that its key is the same too."""
    return one is not None and one.pid == other.pid and one.started_at == other.started_at and one.port == other.port
