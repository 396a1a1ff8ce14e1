"""Rooms for files on their way in: one per file, for one process at a time.

    models/.incoming/<key>/         what a download has so far; it stays when that fails, is cancelled or killed
    models/.incoming/<key>.lock     held by the process that fills the room
    models/.incoming/new-*, old-*   a model that is just being added or removed

Who asks for a file that another process fetches waits at the room's door, and sees how far it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from genai_notebook.core.downloads.fetch import peek
from genai_notebook.core.downloads.locks import locked
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.settings import private_folder

#: Seconds after which nobody is expected to come back for the rest of a file.
KEPT = 14 * 86_400
#: What an interrupted addition or removal has left is of no use to anybody.
_ABANDONED = 3600
#: How the journal of a file that is still arriving ends (see `downloads.part`).
_JOURNAL = ".part.json"


def incoming_folder(models: Path) -> Path:
    """The folder of rooms below the folder of models."""
    return private_folder(private_folder(models) / ".incoming")


class Rooms:
    """The rooms of one store. `models`: its folder."""

    def __init__(self, models: Path) -> None:
        self._models = models

    @contextlib.contextmanager
    def entered(self, keys: Iterable[str], work: Work) -> Iterator[Mapping[str, Path]]:
        """The rooms of all `keys`, for one caller over all processes. They are gone afterwards when all went well, else
        when nothing is in them.

        Raises:
            DownloadError: the work was cancelled while it waited.
            FileSystemError: the folder cannot be used.
        """
        folder = incoming_folder(self._models)
        self._tidy_up(folder)
        rooms = {key: folder / _name(key) for key in keys}
        with contextlib.ExitStack() as held:
            # In the order of their names: so two who want the same two rooms never wait for each other.
            for room in sorted(set(rooms.values())):
                held.enter_context(locked(Path(f"{room}.lock"), work, lambda: _watch(rooms.values(), work)))
            for room in rooms.values():
                private_folder(room)
                os.utime(room)
            try:
                yield rooms
            except BaseException:
                for room in rooms.values():
                    with contextlib.suppress(OSError):
                        room.rmdir()
                raise
            for room in rooms.values():
                shutil.rmtree(room, ignore_errors=True)

    def _tidy_up(self, folder: Path) -> None:
        """Remove what nobody has come back for."""
        from filelock import FileLock, Timeout

        now = time.time()
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                if not entry.is_dir(follow_symlinks=False):
                    continue
                age = now - entry.stat(follow_symlinks=False).st_mtime
                if entry.name.startswith(("new-", "old-")):
                    if age > _ABANDONED:
                        shutil.rmtree(entry.path, ignore_errors=True)
                elif age > KEPT:
                    with contextlib.suppress(Timeout), FileLock(f"{entry.path}.lock", timeout=0, thread_local=False):
                        shutil.rmtree(entry.path, ignore_errors=True)


def _watch(rooms: Iterable[Path], work: Work) -> None:
    """Report how far the others are with what we wait for."""
    seen = [state for room in rooms for path in room.glob(f"*{_JOURNAL}") if (state := peek(_target_of(path)))]
    if not seen:
        work.enter("queued")
        return
    totals = [total for _, total in seen]
    work.enter("running")
    work.report(
        sum(done for done, _ in seen), None if None in totals else sum(total for total in totals if total is not None)
    )


def _target_of(journal: Path) -> Path:
    return journal.with_name(journal.name.removesuffix(_JOURNAL))


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
