"""The log of one server: `[ISO 8601] [level] message` lines in a file that cannot grow without bound."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from genai_notebook.core.settings import private_folder
from genai_notebook.core.utilities import now_iso

MAX_BYTES = 5 * 1024 * 1024
#: Lines kept in memory for errors that quote the end of the log.
TAIL = 20

_LLAMA = re.compile(r"^\d+\.\d{2}\.\d{3}\.\d{3} ([DIWE]) (.*)$", re.DOTALL)
_SDCPP = re.compile(r"^\[(DEBUG|INFO|WARN|ERROR) *\] (.*)$", re.DOTALL)
_LINE = re.compile(r"^\[([^\]]+)\] \[(\w+)\] (.*)$", re.DOTALL)
_LEVELS = {"D": "debug", "I": "info", "W": "warn", "E": "error"}


def split_level(line: str) -> tuple[str, str]:
    """Level and message of an engine's line, by the prefixes of llama.cpp and stable-diffusion.cpp."""
    if match := _LLAMA.match(line):
        return _LEVELS[match[1]], match[2]
    if match := _SDCPP.match(line):
        return match[1].lower(), match[2]
    return ("error" if line.lower().startswith(("error", "fatal", "traceback")) else "info"), line


class ServerLog:
    """Appends to `<folder>/<name>.log`; past 5 MiB the file becomes `<name>.log.1`, and the older one goes.

    Args:
        folder: made if it is missing.
        name: a server's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.log"
        self.old = folder / f"{name}.log.1"
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._secrets: list[str] = []
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def hide(self, secret: str) -> None:
        """Never write `secret` down."""
        self._secrets = [secret]

    def engine_line(self, line: str, *, keep_debug: bool = False) -> None:
        """Append a line that an engine printed; those of the debug level, which may hold prompts, only if asked for."""
        level, message = split_level(line)
        if level != "debug" or keep_debug:
            self.append(level, message)

    def append(self, level: str, message: str) -> None:
        for secret in self._secrets:
            message = message.replace(secret, "***")
        text = f"[{now_iso()}] [{level}] {message}"
        with self._lock:
            self._tail.append(message)
            try:
                self._write(text)
            except OSError:
                # A full disk must not stop an engine; the tail in memory still serves errors.
                self._file = None

    def _write(self, text: str) -> None:
        if self._file is None:
            private_folder(self.path.parent)
            self._file = open(self.path, "a", encoding="utf-8", errors="replace", opener=_private)  # noqa: SIM115
        self._file.write(text + "\n")
        self._file.flush()
        if self._file.tell() > MAX_BYTES:
            self._file.close()
            self._file = None
            os.replace(self.path, self.old)

    def tail(self) -> list[str]:
        """The last messages, at most 20, without times and levels."""
        with self._lock:
            return list(self._tail)

    def forget_tail(self) -> None:
        """Begin a new run: errors quote this run's lines only."""
        with self._lock:
            self._tail.clear()

    def read(self, lines: int | None) -> list[str]:
        """The last `lines` lines (None: all that are kept), oldest first."""
        kept: deque[str] = deque(maxlen=lines)
        for path in (self.old, self.path):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    kept.extend(line.rstrip("\n") for line in file)
            except FileNotFoundError:
                continue
        return list(kept)

    def clear(self) -> None:
        with self._lock:
            self.close()
            self._tail.clear()
            for path in (self.path, self.old):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def parse_line(line: str) -> dict[str, Any]:
    """`{"timestamp", "level", "message"}` of a line in a log file; foreign lines are messages without a time."""
    match = _LINE.match(line)
    if not match:
        return {"timestamp": None, "level": "info", "message": line}
    return {"timestamp": match[1], "level": match[2], "message": match[3]}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
