"""What every server manager does: one state machine, logs, events, and a supervisor that notices the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from genai_notebook.core.callbacks import Callback
from genai_notebook.core.engines.engine import Engine, Kind
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.session import EngineSession
from genai_notebook.core.engines.trial import Trial
from genai_notebook.core.events import Events
from genai_notebook.core.models.manager import ModelManager
from genai_notebook.core.processes.launcher import GuardLauncher, Launcher
from genai_notebook.core.processes.logs import ServerLog, parse_line
from genai_notebook.core.schema import EngineProgress, HealthStatus, ModelInfo, ModelType, ServerInfo, ServerStatus
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.utilities import format_bytes
from genai_notebook.errors import (
    InsufficientResourcesError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
    error_to_wire,
)

log = logging.getLogger("genai_notebook")

#: Seconds between the supervisor's health checks of a running engine.
HEALTH_INTERVAL = 10.0

Info = TypeVar("Info", bound=ServerInfo)
Notify = Callable[[str, dict[str, Any]], None]


def _no_one(name: str, data: dict[str, Any]) -> None:
    """Nobody listens."""


class Parts:
    """What a manager works with; what is not given is the process's own.

    Args:
        notify: told every change, as `Runtime.subscribe` hands it on.
        owner: 'jupyter-server' or 'kernel', as `ServerInfo.owner` reports it.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        system: SystemInfo | None = None,
        models: ModelManager | None = None,
        engines: BinaryManager | None = None,
        launcher: Launcher | None = None,
        notify: Notify = _no_one,
        owner: str = "kernel",
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.system = system or SystemInfo.get_instance()
        self.models = models or ModelManager.get_instance()
        self.engines = engines or BinaryManager.get_instance()
        self.launcher = launcher or GuardLauncher()
        self.notify = notify
        self.owner = owner


class ServerManager(Generic[Info]):
    """The base of the LLM's and the image generator's manager.

    All methods that change something run on one event loop. A session object stands for one run of one process, and
    each start and stop takes a new generation number: what comes late, after something newer, changes nothing.
    """

    #: The state machine's own words for people.
    _title = "The server"

    def __init__(self, name: str, parts: Parts | None = None) -> None:
        self._name = name
        self._parts = parts or Parts()
        self._log = ServerLog(self._parts.settings.logs, name)
        self._events = Events()
        self._status: ServerStatus = "stopped"
        self._health: HealthStatus = "unknown"
        self._error: str | None = None
        self._generation = 0
        self._starting: asyncio.Task[Any] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._ending: set[EngineSession] = set()
        self._retired = False
        self._session: EngineSession | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Whether a start waits for an engine that is on its way: as yet nothing is loaded.
        self.is_fetching = False

    # ---- the part subclasses fill ----

    def get_info(self) -> Info:
        """A snapshot of everything known; costs nothing."""
        raise NotImplementedError

    async def restart(self) -> Info:
        """Stop, and start again with the same configuration, port and API key.

        Raises:
            ServerError: it was never started.
        """
        raise NotImplementedError

    async def is_healthy(self) -> bool:
        """Ask the engine over HTTP whether it is well."""
        raise NotImplementedError

    async def _close(self) -> None:
        """End everything the server has: engine, jobs, ports. May be called in any state, and more than once."""
        await self._end_session()

    # ---- state ----

    @property
    def name(self) -> str:
        return self._name

    def get_status(self) -> ServerStatus:
        """'stopped', 'starting', 'running', 'stopping' or 'crashed'; costs nothing."""
        return self._status

    def _change(self, status: ServerStatus, health: HealthStatus = "unknown", error: str | None = None) -> None:
        self._status, self._health, self._error = status, health, error
        self._parts.system.clear_cache()
        self._announce()

    def _set_health(self, health: HealthStatus) -> None:
        if health != self._health:
            self._health = health
            self._announce()

    def _announce(self) -> None:
        info = msgspec.to_builtins(self.get_info())
        info.pop("apiKey", None)
        self._parts.notify("status", {"server": self._name, "info": info})

    # ---- starting ----

    async def _run_start(self, work: Callable[[], Coroutine[Any, Any, Info]], asked: Callable[[], None]) -> Info:
        """Claim the state, run `work()` so that `stop` can cancel it, and undo what a failure leaves.

        `asked` is called with the claim: it notes what was asked for, so that `get_info` speaks of the right model.
        """
        await self._stop_under_way()
        if self._retired or self._status in ("starting", "running"):
            raise self._refusal()
        self._generation += 1
        generation = self._generation
        asked()
        self._change("starting", "loading")
        task = asyncio.ensure_future(work())
        self._starting = task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            await self._undo_start(task, generation)
            raise
        finally:
            self._starting = None
        if task.cancelled():
            raise ServerError(f"The start of {self._title.lower()} was cancelled.", code="START_CANCELLED")
        if error := task.exception():
            self._settle(generation, "crashed" if isinstance(error, ServerError) else "stopped", str(error))
            raise error
        info = task.result()
        self._events.emit("started", info)
        self._parts.notify("started", {"server": self._name})
        return info

    def _refusal(self) -> ServerError:
        if self._retired:
            return ServerError("This runtime has been closed.", code="SERVER_NOT_RUNNING")
        return ServerError(
            f"{self._title} is {'already running' if self._status == 'running' else self._status}.",
            {"status": self._status, "model_id": self.get_info().model_id},
            code="ALREADY_RUNNING",
            hint="Stop it first, or restart it.",
        )

    def _settle(self, generation: int, status: ServerStatus, error: str | None = None) -> None:
        if generation == self._generation and self._status == "starting":
            self._change(status, "error" if status == "crashed" else "unknown", error)

    async def _undo_start(self, task: asyncio.Task[Info], generation: int) -> None:
        """The caller of a start has gone. It may have succeeded in that very moment: then its engine goes too."""
        self._settle(generation, "stopped")
        done = not task.cancelled() and task.exception() is None
        if done and generation == self._generation and self._status == "running":
            await self.stop()

    async def _cancel_start(self) -> None:
        task = self._starting
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            self._settle(self._generation, "stopped")

    # ---- stopping ----

    async def stop(self) -> None:
        """End the server and wait until it is gone. A start under way is cancelled; a stopped server is no error.

        Once begun, a stop is carried out, also when nobody waits for it any more; who stops meanwhile joins it.

        Raises:
            ServerError: the engine's process does not end, not even on SIGKILL.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
            self._stopping.add_done_callback(self._stop_done)
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        await self._cancel_start()
        if self._status == "stopped":
            return
        self._generation += 1
        self._change("stopping")
        try:
            await self._close()
        finally:
            self._change("stopped")
        self._events.emit("stopped")
        self._parts.notify("stopped", {"server": self._name})

    def _stop_done(self, task: asyncio.Task[None]) -> None:
        self._stopping = None
        _log_failure(task)

    async def _stop_under_way(self) -> None:
        if self._stopping is not None:
            await asyncio.wait({self._stopping})

    def retire(self) -> None:
        """Refuse every further start: the runtime closes."""
        self._retired = True

    def kill(self) -> None:
        """End what is still ending, at once (SIGKILL), for an owner that cannot wait any longer."""
        for session in self._ending:
            session.kill()

    async def _find_model(self, model_id: str, type: ModelType) -> ModelInfo:
        model = await self._parts.models.get_model_info(model_id)
        if model.type != type:
            kind = "an image model" if model.type == "diffusion" else "a language model"
            raise ModelNotFoundError(model_id, hint=f"{model_id} is in the store, but it is {kind}.")
        return model

    # ---- engines ----

    async def _find_engine(self, kind: Kind, trial: Trial | None, *, force: bool = False, stay: bool = False) -> Engine:
        """The engine to use, telling the listeners what happens on the way; errors as `BinaryManager.resolve`."""
        try:
            return await self._parts.engines.resolve(
                kind,
                trial=trial,
                force_validation=force,
                stay=stay,
                on_log=self._binary_log,
                on_progress=self._binary_progress,
            )
        finally:
            self.is_fetching = False

    def _open_session(
        self,
        engine: Engine,
        port: int,
        on_line: Callable[[str, bool], None],
        *,
        model: ModelInfo,
        api_key: str | None = None,
        keep_debug: bool = False,
    ) -> EngineSession:
        """The session for one run of an engine; nothing is started yet."""
        return EngineSession(
            self._name,
            engine,
            port=port,
            api_key=api_key,
            model_id=model.id,
            owner=self._parts.owner,
            settings=self._parts.settings,
            launcher=self._parts.launcher,
            log=self._log,
            on_line=on_line,
            keep_debug=keep_debug,
        )

    def _binary_log(self, message: str, level: str = "info") -> None:
        """Tell what happens while an engine is looked for, fetched and tested."""
        self._log.append(level, message)
        self._events.emit("binary-log", {"message": message, "level": level})
        self._parts.notify("binary-log", {"server": self._name, "message": message, "level": level})

    def _binary_progress(self, news: EngineProgress) -> None:
        self.is_fetching = news.stage not in ("testing", "done")
        data = msgspec.to_builtins(news)
        self._events.emit("binary-progress", data)
        self._parts.notify("binary-progress", {"server": self._name, **data})

    # ---- supervision ----

    def _watch(self, session: EngineSession, health_path: str) -> None:
        """Notice the unasked end of `session`, and keep its health fresh."""
        self._spawn(self._watch_exit(session))
        self._spawn(self._watch_health(session, health_path))

    async def _watch_exit(self, session: EngineSession) -> None:
        assert session.exit is not None
        await asyncio.wait({session.exit})
        if self._session is not session or self._status == "stopping":
            return  # asked for, or already replaced
        self._session = None
        self._crashed(session.ended("by itself"))
        await session.stop(0)

    def _crashed(self, error: ServerError) -> None:
        self._log.append("error", str(error))
        self._change("crashed", "error", str(error))
        self._events.emit("crashed", error)
        self._parts.notify("crashed", {"server": self._name, "error": error_to_wire(error)})

    async def _watch_health(self, session: EngineSession, path: str) -> None:
        assert session.exit is not None
        while self._session is session and not session.exit.done():
            await asyncio.wait({session.exit}, timeout=HEALTH_INTERVAL)
            if self._session is session and self._status == "running":
                health: HealthStatus = "ok" if await session.healthy(path) else "error"
                if self._session is session and self._status == "running" and not session.exit.done():
                    self._set_health(health)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` beside everything else; what it raises is logged."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task

    async def _end_session(self, grace: float | None = None) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        self._ending.add(session)
        try:
            await (session.stop() if grace is None else session.stop(grace))
        finally:
            self._ending.discard(session)

    # ---- logs and events ----

    async def get_logs(self, lines: int | None = 100) -> list[str]:
        """The last `lines` lines, ``[ISO 8601] [level] message``; None or infinity: all that are kept.

        Raises:
            InvalidRequestError: `lines` is negative or no number.
        """
        return await asyncio.to_thread(self._log.read, line_count(lines))

    async def get_structured_logs(self, lines: int | None = 100) -> list[dict[str, Any]]:
        """As `get_logs`, each line as `{"timestamp", "level", "message"}`."""
        return [parse_line(line) for line in await self.get_logs(lines)]

    async def clear_logs(self) -> None:
        """Forget all lines, on disk too."""
        await asyncio.to_thread(self._log.clear)

    def on(self, event: str, listener: Callback) -> None:
        """Call `listener` at every `event`.

        Events: started(info), stopped(), crashed(ServerError), binary-log({message, level}), binary-progress({…}).

        Raises:
            InvalidRequestError: there is no such event.
        """
        self._events.on(event, listener)

    def once(self, event: str, listener: Callback) -> None:
        """Call `listener` at the next `event` only; as `on`."""
        self._events.once(event, listener)

    def off(self, event: str, listener: Callback) -> None:
        """Undo one `on` or `once`."""
        self._events.off(event, listener)


def insufficient(
    model: ModelInfo, what: str, required: int, available: int, way_out: str
) -> InsufficientResourcesError:
    """The error for a model that does not fit. Sizes in bytes; `what` is 'RAM' or 'VRAM'."""
    needs, has = format_bytes(required), format_bytes(available)
    return InsufficientResourcesError(
        f"{model.name} does not fit: it needs {needs} of {what}, and {has} is there.",
        {"required": needs, "available": has, "suggestion": way_out},
    )


def refuse_flags(flags: Iterable[str], ours: Collection[str]) -> None:
    """Keep `extra_args` from opening another door.

    Raises:
        InvalidRequestError: one of `flags` is in `ours`.
    """
    for flag in flags:
        if flag.split("=", 1)[0] in ours:
            raise InvalidRequestError(
                f"extra_args: {flag} is set by the manager.",
                {"field": "extra_args", "flag": flag},
                hint="Use the keywords of start() for the model, the port, the host and the key.",
            )


def line_count(lines: Any) -> int | None:
    """How many lines of a log are wanted; None: all that are kept.

    Raises:
        InvalidRequestError: `lines` is negative or no whole number.
    """
    if lines is None or lines == math.inf:
        return None
    if isinstance(lines, bool) or not isinstance(lines, int) or lines < 0:
        raise InvalidRequestError("lines: must be a whole number from 0, or None for all.", {"field": "lines"})
    return lines


def _log_failure(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if error := task.exception():
            log.error("a background task failed", exc_info=error)
