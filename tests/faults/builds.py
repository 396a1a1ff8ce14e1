"""What the tests of installing share."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from genai_notebook.core.engines.manager import BinaryManager
from tests.fakes.machine import card
from tests.fakes.release_server import engine_archive
from tests.fakes.releases import GIB

PROGRAM = b"#!/bin/sh\necho 'version: 7 (x)'\n"
MB = 1 << 20
NVIDIA = card(8 * GIB, cuda=True, vulkan=True, driver="1")


def large(program: bytes = PROGRAM, size: int = 4 * MB) -> bytes:
    """An archive that takes a while."""
    return engine_archive(program, extra={"weights.bin": os.urandom(size)})


def install(engines: BinaryManager, name: str | None = "cpu", **options: Any) -> Any:
    return asyncio.run(engines.install("llama", name, **options))


def resolve(engines: BinaryManager, **options: Any) -> Any:
    return asyncio.run(engines.resolve("llama", **options))


def left(home: Path) -> list[str]:
    """Files that lie below the folder of engines, other than locks."""
    folder = home / "engines"
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )
