"""The rendezvous on disk: one JSON file per running engine, and the reaping of what dead owners left behind.

A file names the engine and its owner by process id and creation time, because ids are used again. Files are written
whole and renamed into place, readable by their user only: they hold API keys.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

import msgspec
import psutil

from genai_notebook.core.schema import EngineRecord
from genai_notebook.core.settings import private_folder
from genai_notebook.errors import FileSystemError

log = logging.getLogger("genai_notebook")

#: Two readings of one process's creation time may differ by the clock's grain.
CLOCK_GRAIN = 0.05


class EngineRegistry:
    """The files under one folder.

    Args:
        folder: `Settings.run`; made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, record: EngineRecord) -> Path:
        """Write `record` down and return its file.

        Raises:
            FileSystemError: the folder cannot be written.
        """
        path = private_folder(self.folder) / f"engine-{record.name}-{record.pid}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(msgspec.json.encode(record))
            os.replace(temporary, path)
        except OSError as error:
            raise FileSystemError("write", str(path), error) from error
        return path

    def remove(self, record: EngineRecord) -> None:
        with contextlib.suppress(OSError):
            (self.folder / f"engine-{record.name}-{record.pid}.json").unlink()

    def engines(self) -> list[EngineRecord]:
        """The engines that are alive, whoever owns them."""
        return [record for _, record in self._read() if is_alive(record.pid, record.pid_created)]

    def reap(self) -> list[EngineRecord]:
        """End the engines whose owner is dead, remove what is stale, and return what was ended.

        The guard normally does this within moments; this is for the day when owner and guard died together.
        """
        ended = []
        for path, record in self._read():
            if not is_alive(record.pid, record.pid_created):
                path.unlink(missing_ok=True)
            elif not is_alive(record.owner_pid, record.owner_created):
                log.warning("ending %s (pid %d), left behind by a dead owner", record.engine, record.pid)
                end_group(record.pid)
                path.unlink(missing_ok=True)
                ended.append(record)
        return ended

    def _read(self) -> list[tuple[Path, EngineRecord]]:
        records = []
        for path in sorted(self.folder.glob("engine-*.json")):
            try:
                records.append((path, msgspec.json.decode(path.read_bytes(), type=EngineRecord)))
            except (OSError, msgspec.DecodeError) as error:
                log.warning("%s is unreadable: %s", path, error)
        return records


def is_alive(pid: int, created: float) -> bool:
    """Whether process `pid` runs and is the one created at `created` (seconds since the epoch)."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < CLOCK_GRAIN
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_group(pid: int) -> None:
    """End an engine and what it started, at once. Engines lead their own process group."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(psutil.Error):
        engine = psutil.Process(pid)
        for process in [*engine.children(recursive=True), engine]:
            with contextlib.suppress(psutil.Error):
                process.kill()
