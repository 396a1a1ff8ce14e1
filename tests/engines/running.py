"""Real engine programs in tests: started as their users start them, ended by pid."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

LLAMA = "genai_notebook.core.engines.embedded.llama_server"
SD = "genai_notebook.core.engines.embedded.sd_server"
_ROOT = str(Path(__file__).resolve().parents[2])
_LISTENING = re.compile(rb"listening on (?:http://)?(127\.0\.0\.1):(\d+)")


class Running:
    """One engine program, its output, and a way to talk to it."""

    def __init__(self, module: str, *args: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": _ROOT, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._readers = [
            threading.Thread(target=_collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()
        self.key: str | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.finish()

    @property
    def output(self) -> str:
        """What it printed, both streams."""
        return (bytes(self.stdout) + bytes(self.stderr)).decode("utf-8", "replace")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait for a true value of `condition` while the program lives."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < end, f"no {what} within {seconds} s:\n{self.output}"
            time.sleep(0.005)
        return value

    def ready(self) -> int:
        """Wait until it says where it listens; the port."""
        match = self.until(lambda: _LISTENING.search(bytes(self.stdout) + bytes(self.stderr)), "listening line")
        self.port = int(match[2])
        return self.port

    def finish(self, seconds: float = 30.0) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return code

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """One request on a connection of its own: status, decoded JSON (or bytes), headers in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        try:
            payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {**sent, **(headers or {})})
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in reply.getheaders()}
        try:
            return reply.status, json.loads(data), found
        except ValueError:
            return reply.status, data, found


def run_to_end(module: str, *args: str, cwd: Path, env: dict[str, str] | None = None) -> Running:
    """Run a program that is expected to end by itself."""
    with Running(module, *args, cwd=cwd, env=env) as program:
        program.finish()
        return program


def _collect(stream: Any, into: bytearray) -> None:
    while chunk := os.read(stream.fileno(), 65536):
        into.extend(chunk)
    stream.close()
