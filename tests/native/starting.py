"""Compiled servers in tests, started with whole command lines."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Server:
    """A started program. `log` is all it has printed so far, both streams, bars included."""

    def __init__(self, argv: Sequence[str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent)

    @property
    def log(self) -> bytes:
        return self._log.read_bytes()

    def until_ready(self, path: str, seconds: float = 60.0) -> None:
        """Wait until `path` answers 2xx.

        Raises:
            AssertionError: it ended before, or time is up; with the end of its log.
        """
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log[-3000:].decode()}"
            assert time.monotonic() < end, self.log[-3000:].decode()
            try:
                with urllib.request.urlopen(self.url + path, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)


@contextmanager
def started(argv: Sequence[str], port: int, log: Path) -> Iterator[Server]:
    """A server that is ended in the end."""
    server = Server(argv, port, log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)
