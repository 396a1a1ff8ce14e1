"""Starting an engine behind its guard, and what an owner can do with it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
from msgspec import Struct

from genai_notebook.core.processes.output import LineSplitter
from genai_notebook.core.processes.registry import end_group, is_alive
from genai_notebook.core.settings import private_folder
from genai_notebook.core.waiting import within
from genai_notebook.errors import BinaryError, ServerError

GUARD = Path(__file__).with_name("guard.py")
#: Reads of engine output that may wait for the event loop before the pipe is left to fill (back-pressure).
READS_AHEAD = 64
#: Seconds the end of the output may lag behind the report of the exit.
OUTPUT_LAG = 1.0

OnLine = Callable[[str, bool], None]


class LaunchSpec(Struct, kw_only=True, frozen=True):
    """What to start. `argv[0]` is a path, or a name on the PATH of `env`; `cwd` is made if it is missing."""

    name: str
    argv: list[str]
    env: dict[str, str]
    cwd: Path


class Exit(Struct, frozen=True):
    """How a process ended: an exit code, or the name of the signal that ended it; neither when nobody can tell."""

    code: int | None = None
    signal: str | None = None

    @classmethod
    def from_returncode(cls, code: int) -> Exit:
        if code >= 0:
            return cls(code=code)
        try:
            return cls(signal=signal.Signals(-code).name)
        except ValueError:
            return cls(signal=f"signal {-code}")

    def describe(self) -> str:
        if self.signal:
            hint = " (often: out of memory)" if self.signal == "SIGKILL" else ""
            return f"ended by {self.signal}{hint}"
        return f"exited with code {self.code}" if self.code is not None else "ended"


class EngineProcess(Protocol):
    """A running engine. `pid` is the engine's own, `created` its creation time in seconds since the epoch."""

    pid: int
    created: float

    async def wait(self) -> Exit:
        """Wait for the end of the engine and of its output. May be awaited by several."""
        ...

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to its group). Returns at once."""
        ...

    def kill(self) -> None:
        """End it (SIGKILL to its group). Returns at once."""
        ...


class Launcher(Protocol):
    """The seam between the managers and real processes."""

    async def launch(self, spec: LaunchSpec, on_line: OnLine) -> EngineProcess:
        """Start an engine; `on_line(text, is_progress_bar)` runs on the event loop for each line it prints.

        Raises:
            BinaryError: the program cannot be started.
        """
        ...


class GuardLauncher:
    """Starts engines behind `guard.py`: they end when this process does, however it does."""

    async def launch(self, spec: LaunchSpec, on_line: OnLine) -> EngineProcess:
        private_folder(spec.cwd)
        process = GuardedProcess(spec, on_line)
        await process.started()
        return process


class GuardedProcess:
    """Two threads read the guard's pipes and hand what they find to the event loop; idle, nothing wakes up."""

    def __init__(self, spec: LaunchSpec, on_line: OnLine) -> None:
        self.pid = 0
        self.created = 0.0
        self._spec = spec
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._pid_known: asyncio.Future[int] = self._loop.create_future()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._output_ended = asyncio.Event()
        self._credit = threading.Semaphore(READS_AHEAD)
        self._guard = self._spawn()
        for target in (self._read_reports, self._read_output):
            threading.Thread(target=target, name=f"genai-notebook-{spec.name}", daemon=True).start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *self._spec.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._spec.cwd,
                env=self._spec.env,
                bufsize=0,
                # Ctrl-C in a terminal and a notebook's Interrupt go to the owner's group.
                start_new_session=os.name == "posix",
            )
        except OSError as error:
            raise BinaryError(f"{self._spec.name} could not be started: {error}") from error

    async def started(self) -> None:
        """Wait until the engine's process exists."""
        try:
            self.pid = await asyncio.shield(self._pid_known)
        except asyncio.CancelledError:
            self.kill()
            raise
        with contextlib.suppress(psutil.Error):
            self.created = psutil.Process(self.pid).create_time()

    async def wait(self) -> Exit:
        result = await asyncio.shield(self._exit)
        with contextlib.suppress(asyncio.TimeoutError):
            await within(OUTPUT_LAG, self._output_ended.wait())
        return result

    def terminate(self) -> None:
        self._command(b"t")

    def kill(self) -> None:
        self._command(b"k")

    def _command(self, letter: bytes) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(letter)
        except (OSError, ValueError):
            self._end_orphan()

    # ---- on the threads ----

    def _read_reports(self) -> None:
        assert self._guard.stdout is not None
        for raw in self._guard.stdout:
            word, _, rest = raw.decode("utf-8", "replace").strip().partition(" ")
            self._post(self._report, word, rest)
        self._guard.wait()
        self._post(self._guard_ended)

    def _read_output(self) -> None:
        assert self._guard.stderr is not None
        splitter = LineSplitter()
        while data := os.read(self._guard.stderr.fileno(), 65_536):
            if lines := splitter.feed(data):
                self._credit.acquire()
                self._post(self._deliver, lines)
        self._post(self._deliver, splitter.close(), True)

    def _post(self, function: Callable[..., None], *args: object) -> None:
        # The loop is closed when its owner has shut down without waiting for us.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # ---- on the event loop ----

    def _report(self, word: str, rest: str) -> None:
        if word == "pid" and not self._pid_known.done():
            self._pid_known.set_result(int(rest))
        elif word == "exit" and not self._exit.done():
            self._exit.set_result(Exit.from_returncode(int(rest)))
        elif word == "error" and not self._pid_known.done():
            self._pid_known.set_exception(BinaryError(f"{self._spec.name} could not be started: {rest}"))

    def _deliver(self, lines: list[tuple[str, bool]], last: bool = False) -> None:
        self._credit.release()
        for text, is_bar in lines:
            self._on_line(text, is_bar)
        if last:
            self._output_ended.set()

    def _guard_ended(self) -> None:
        """The reports have ended: normally after the engine, else the guard itself was killed."""
        if not self._pid_known.done():
            self._pid_known.set_exception(ServerError(f"The guard of {self._spec.name} died before the engine ran."))
        if not self._exit.done():
            self._end_orphan()
            self._exit.set_result(Exit())

    def _end_orphan(self) -> None:
        if self.pid and is_alive(self.pid, self.created):
            end_group(self.pid)
