"""What the tests of downloads share: to get a file, or a part of one, from a `ServedFile`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.downloads.fetch import FIRST, Fetch, Fetched, fetch, peek
from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.errors import DownloadError
from tests.fakes import eventually
from tests.fakes.file_server import ServedFile

MB = 1 << 20


def get(file: ServedFile, target: Path, work: Work | None = None, **more: Any) -> Fetched:
    found = fetch(Fetch(url=file.url, target=target, **more), work or Work())
    assert target.read_bytes() == file.body
    assert (found.sha256, found.size, found.path) == (file.sha256, len(file.body), target)
    return found


def leave(file: ServedFile, target: Path, at: int = 3 * MB, **more: Any) -> int:
    """Get about that many bytes, all at most, and let the download be cancelled then; how many there are."""
    ended = threading.Event()
    work = Work(
        lambda done, _: work.cancel() if done >= at - 2 * FIRST else None,
        lambda phase: work.cancel() if phase == "verifying" else None,
    )
    file.sent = 0
    before, file.before = file.before, lambda sent: void(sent >= at and ended.wait(30))
    with pytest.raises(DownloadError) as caught:
        fetch(Fetch(url=file.url, target=target, **more), work)
    ended.set()
    assert is_cancelled(caught.value)
    assert not target.exists()
    eventually(lambda: not file.open)
    file.before, file.sent = before, 0
    file.asked.clear()
    state = peek(target)
    return state[0] if state else 0


def void(_: object) -> None:
    """For hooks, which return nothing."""


def ranges(file: ServedFile) -> list[tuple[int, int]]:
    """What was asked for, each time."""
    assert None not in file.asked
    return [asked for asked in file.asked if asked is not None]


def threads_left() -> list[str]:
    """The threads of downloads that are still there; others have a right to be."""
    own = ("genai-notebook-connect", "genai-notebook-download", "genai-notebook-sha256")
    return [thread.name for thread in threading.enumerate() if thread.name in own]
