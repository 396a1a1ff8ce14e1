"""What several unit tests use: a web server on loopback, and a place for a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.file_server import FileServer, file_server


@pytest.fixture
def server() -> Iterator[FileServer]:
    """Serves files well, badly, or not at all."""
    with file_server() as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where to; beside a finished file, nothing stays."""
    folder = tmp_path / "files"
    folder.mkdir()
    target = folder / "a.bin"
    yield target
    if target.exists():
        assert [path.name for path in folder.iterdir()] == ["a.bin"]
