"""Which engine was found last, and whether that still holds: so that a start asks for it without a search."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from genai_notebook.core.engines import places
from genai_notebook.core.engines.choices import Choices
from genai_notebook.core.engines.engine import Engine, Kind
from genai_notebook.core.engines.search import Found
from genai_notebook.core.engines.verdicts import UNREACHED
from genai_notebook.core.settings import Settings


class _Noted(Struct, frozen=True):
    """`until`: when a better one is worth another try, by the monotonic clock."""

    found: Found
    stamp: tuple[Any, ...]
    until: float


class Memory:
    """What this process knows; the verdicts on disk are what all of them know."""

    def __init__(self, settings: Settings, choices: Choices) -> None:
        self._settings = settings
        self._choices = choices
        self._noted: dict[Kind, _Noted] = {}

    def note(self, kind: Kind, found: Found) -> None:
        until = time.monotonic() + UNREACHED if found.postponed else float("inf")
        self._noted[kind] = _Noted(found, self._stamp(kind, found.engine), until)

    def forget(self, kind: Kind) -> None:
        self._noted.pop(kind, None)

    def recall(self, kind: Kind, *, stay: bool = False) -> Found | None:
        """What the last search found, while that still holds; with `stay` also when a better one may be had by now."""
        noted = self._noted.get(kind)
        if noted is None or (time.monotonic() > noted.until and not stay):
            return None
        return noted.found if noted.stamp == self._stamp(kind, noted.found.engine) else None

    def _stamp(self, kind: Kind, engine: Engine) -> tuple[Any, ...]:
        """What must not have changed for an engine to be still the right one."""
        wheels = places.wheels_version(kind) if engine.variant == "embedded" else None
        # Of sd-cli, which runs through Python, the program is the last word.
        files = _file_stamp(engine.argv[0]), _file_stamp(engine.argv[-1])
        return str(own_path(self._settings, kind)), self._choices.get(kind), wheels, *files


def own_path(settings: Settings, kind: Kind) -> Path | None:
    """The user's own program, where a setting names one."""
    return settings.llama_server if kind == "llama" else settings.sd_server


def _file_stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
