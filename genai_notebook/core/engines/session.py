"""One run of one engine: launched behind its guard, waited for until it answers, ended and its death confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.processes.environment import child_environment
from genai_notebook.core.processes.launcher import EngineProcess, Exit, Launcher, LaunchSpec
from genai_notebook.core.processes.logs import ServerLog
from genai_notebook.core.processes.ports import LOOPBACK
from genai_notebook.core.processes.registry import EngineRegistry
from genai_notebook.core.schema import EngineRecord
from genai_notebook.core.settings import Settings
from genai_notebook.core.utilities import now_iso
from genai_notebook.core.waiting import within
from genai_notebook.errors import ServerError

if TYPE_CHECKING:
    import httpx

#: Seconds between looks at an engine that loads.
POLL = 0.015
#: Seconds without an answer and without a line of output after which a loading engine counts as hung.
SILENCE = 120.0
#: Seconds an engine has for ending on SIGTERM.
GRACE = 10.0
#: Seconds after SIGKILL until its death must be known.
CONFIRM = 5.0


class EngineSession:
    """One engine process and the HTTP client to it.

    Args:
        server: the manager's name ('llama', 'diffusion', …), for logs and the registry.
        engine: the program.
        port: the loopback port it was told to listen on.
        api_key: the key our requests carry, or None.
        on_line: called on the loop with each line of output and whether it is a progress bar.
        keep_debug: whether the log gets the engine's debug lines too, which may hold prompts.
    """

    def __init__(
        self,
        server: str,
        engine: Engine,
        *,
        port: int,
        api_key: str | None,
        model_id: str,
        owner: str,
        settings: Settings,
        launcher: Launcher,
        log: ServerLog,
        on_line: Callable[[str, bool], None] | None = None,
        keep_debug: bool = False,
    ) -> None:
        self.server = server
        self.engine = engine
        self.port = port
        self.api_key = api_key
        self.model_id = model_id
        self.url = f"http://{LOOPBACK}:{port}"
        self.started_at = now_iso()
        self.process: EngineProcess | None = None
        self._owner = owner
        self._settings = settings
        self._launcher = launcher
        self._log = log
        self._on_line = on_line
        self._keep_debug = keep_debug
        self._registry = EngineRegistry(settings.run)
        self._record: EngineRecord | None = None
        self._client: httpx.AsyncClient | None = None
        self._heard = time.monotonic()
        self.exit: asyncio.Task[Exit] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def client(self) -> httpx.AsyncClient:
        """To the engine, key included. Made at first use: importing httpx overlaps with the engine's own start."""
        if self._client is None:
            import httpx

            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            # No proxies from the environment: the engine is on this machine. No TLS either, whose set-up takes 60 ms.
            self._client = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                trust_env=False,
                verify=False,
                timeout=httpx.Timeout(60.0, connect=5.0),
            )
        return self._client

    async def launch(self, arguments: list[str], env: dict[str, str] | None = None) -> None:
        """Start the process and write it into the registry.

        Args:
            arguments: after the engine's own argv.
            env: environment variables on top of the usual ones, also for what must not stand in a process list.
        """
        self._log.forget_tail()
        self._log.append("info", f"starting {self.engine.name} for {self.model_id} on port {self.port}")
        spec = LaunchSpec(
            name=self.engine.name,
            argv=[*self.engine.argv, *arguments],
            env=child_environment({**self.engine.env, **(env or {})}),
            cwd=self._settings.run,
        )
        self.process = await self._launcher.launch(spec, self._line)
        self.exit = asyncio.ensure_future(self.process.wait())
        self._record = self._new_record(self.process)
        self._registry.add(self._record)

    async def wait_until_ready(self, path: str) -> None:
        """Wait until `path` answers 2xx. A load that still prints is alive; silence is not.

        Raises:
            ServerError: the engine ended, with its exit code and the last lines of its log; or it hangs.
        """
        assert self.exit is not None
        while not self.exit.done():
            if await self._answers(path):
                return
            if time.monotonic() - self._heard > SILENCE:
                raise self.error(f"{self.engine.name} has neither answered nor printed anything for {SILENCE:.0f} s.")
            await asyncio.wait({self.exit}, timeout=POLL)
        raise self.ended("while it was starting")

    async def has_ended(self) -> bool:
        """Whether the process has ended; one that is just dying closes its connections a moment before that shows."""
        assert self.exit is not None
        await asyncio.wait({self.exit}, timeout=1.0)
        return self.exit.done()

    def lost_its_port(self) -> bool:
        """Whether somebody else had taken the port when the engine wanted it."""
        return any("couldn't bind" in line for line in self._log.tail())

    def log_tail(self) -> list[str]:
        """The last lines it printed."""
        return self._log.tail()

    async def healthy(self, path: str, timeout: float = 3.0) -> bool:
        """Whether `path` answers 2xx within `timeout` seconds."""
        return await self._answers(path, timeout)

    async def get_json(self, path: str) -> Any:
        """A JSON document of the engine's, or None where it has none."""
        import httpx

        try:
            reply = await self.client.get(path, timeout=5.0)
            return reply.json() if reply.is_success else None
        except (httpx.HTTPError, ValueError):
            return None

    async def is_answering(self) -> bool:
        """Whether llama-server works on an answer. One too busy to say so counts as that; one that has no such route
        does not.
        """
        import httpx

        try:
            reply = await self.client.get("/slots", timeout=5.0)
            slots = reply.json() if reply.is_success else None
        except httpx.TimeoutException:
            return True
        except (httpx.HTTPError, ValueError):
            return False
        return isinstance(slots, list) and any(isinstance(slot, dict) and slot.get("is_processing") for slot in slots)

    async def stop(self, grace: float = GRACE) -> None:
        """End the engine: SIGTERM, `grace` seconds, SIGKILL, and wait until it is really gone.

        Raises:
            ServerError: it is still there after SIGKILL (a process in the kernel's hands).
        """
        try:
            await self._end_process(grace)
        finally:
            if self._client is not None:
                await self._client.aclose()
                self._client = None

    def kill(self) -> None:
        """End the process at once; `stop` confirms it."""
        if self.process is not None:
            self.process.kill()

    async def _end_process(self, grace: float) -> None:
        if self.process is None or self.exit is None:
            return
        if not self.exit.done() and grace > 0:
            self.process.terminate()
            try:
                await asyncio.wait({self.exit}, timeout=grace)
            except asyncio.CancelledError:
                self.process.kill()  # nobody waits any longer
                raise
        if not self.exit.done():
            self.process.kill()
            await asyncio.wait({self.exit}, timeout=CONFIRM)
        if not self.exit.done():
            raise self.error(f"{self.engine.name} (pid {self.process.pid}) does not end, not even on SIGKILL.")
        self.forget()

    def forget(self) -> None:
        """Take the engine off the registry: it has ended."""
        if self._record is not None:
            self._registry.remove(self._record)
            self._record = None

    def ended(self, when: str) -> ServerError:
        """The error for an engine that ended by itself, with how and its last words."""
        result = self.exit.result() if self.exit and self.exit.done() else Exit()
        if self.lost_its_port():
            return self.error(f"Port {self.port} was taken in the moment {self.engine.name} wanted it.", result)
        return self.error(f"{self.engine.name} {result.describe()} {when}.", result)

    def error(self, message: str, result: Exit | None = None) -> ServerError:
        tail = self._log.tail()
        details: dict[str, Any] = {"log": tail, "engine": self.engine.name}
        if result is not None:
            details.update(exit_code=result.code, signal=result.signal)
        last = next((line for line in reversed(tail) if line.strip()), None)
        hint = f"The log ends with: {last}" if last else "Its log is empty."
        return ServerError(message, details, hint=f"{hint} (%genai logs {self.server} shows more)")

    async def _answers(self, path: str, timeout: float = 2.0) -> bool:
        try:
            return await within(timeout, _is_success(self.port, path))
        except (OSError, ValueError, asyncio.TimeoutError):
            return False

    def _line(self, text: str, is_bar: bool) -> None:
        self._heard = time.monotonic()
        if not is_bar:
            self._log.engine_line(text, keep_debug=self._keep_debug)
        if self._on_line is not None:
            self._on_line(text, is_bar)

    def _new_record(self, process: EngineProcess) -> EngineRecord:
        me = psutil.Process()
        return EngineRecord(
            name=self.server,
            pid=process.pid,
            pid_created=process.created,
            owner_pid=me.pid,
            owner_created=me.create_time(),
            owner=self._owner,
            engine=self.engine.name,
            started_at=self.started_at,
            port=self.port,
            model_id=self.model_id,
            api_key=self.api_key,
        )


async def _is_success(port: int, path: str) -> bool:
    """Whether GET `path` is answered with 2xx.

    By hand: it is asked many times a second while the engine needs every core, and takes a quarter of a client's time.
    """
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        return status.startswith(b"HTTP/1.") and status[8:10] == b" 2"
    finally:
        writer.close()


async def stop_quietly(session: EngineSession, grace: float = 0.0) -> None:
    """End a session whose start has failed; the failure is what the caller reports."""
    with contextlib.suppress(ServerError):
        await asyncio.shield(session.stop(grace))
