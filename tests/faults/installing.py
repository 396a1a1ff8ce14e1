"""A program that installs a build, to be watched and killed: `python -m tests.faults.installing HOME CATALOG [POINT]`.

CATALOG is a JSON file: the mirror, and the builds. It prints "stage …" for each stage and, in the end, "done" with the
program, or "failed" with the reason. At POINT (unpacking, before-rename, after-rename) it prints "here" and waits.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from genai_notebook.core.engines import archives, releases
from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.schema import EngineProgress
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.errors import GenaiNotebookError
from tests.fakes.machine import Machine


class Catalog(msgspec.Struct):
    mirror: str
    builds: list[Build]


def say(*words: str) -> None:
    """One whole line in one piece: two threads speak."""
    os.write(1, (" ".join(words) + "\n").encode())


def wait_here() -> None:
    say("here")
    while True:
        time.sleep(60)


def hold_at(point: str) -> None:
    """Wait where `point` says."""
    write, put = archives._write, releases.Releases._put

    def written(path: Path, *rest: Any) -> None:
        write(path, *rest)
        wait_here()

    def placed(self: Any, aside: Path, place: Path) -> None:
        if place.parent.name == "runtimes":
            return put(self, aside, place)
        if point == "after-rename":
            put(self, aside, place)
        return wait_here()

    if point == "unpacking":
        archives._write = written
    elif point:
        releases.Releases._put = placed  # type: ignore[method-assign]


async def main(home: Path, catalog: Catalog) -> None:
    settings = Settings(home=home, mirror=catalog.mirror)
    system = SystemInfo(settings, probe=Machine(ram=16 << 30))
    engines = BinaryManager(settings, system=system, catalog=catalog.builds)
    stage = ""

    def progress(news: EngineProgress) -> None:
        nonlocal stage
        if news.stage != stage:
            stage = news.stage
            say("stage", stage)

    try:
        installed = await engines.install("llama", "cpu", on_progress=progress)
    except GenaiNotebookError as error:
        say("failed", error.message)
    else:
        say("done", str(installed.path))


if __name__ == "__main__":
    hold_at(sys.argv[3] if len(sys.argv) > 3 else "")
    asyncio.run(main(Path(sys.argv[1]), msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Catalog)))
