"""Several processes and one store: a file is fetched once, whoever is killed meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.settings import Settings
from tests.fakes.file_server import FileServer, file_server
from tests.fakes.gguf_files import write_gguf
from tests.faults.conftest import ROOT

STEP = 64 << 10


class Source:
    """A web server with one model of 4 MiB, which it hands out step by step, and only up to `limit` until that is None.

    `asked`: the ranges of all requests.
    """

    def __init__(self, server: FileServer, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.limit: int | None = len(data) // 2
        self.change = threading.Condition()
        server.routes["/model.gguf"] = self._answer
        self.url = f"{server.url}/model.gguf"

    def open(self) -> None:
        with self.change:
            self.limit = None
            self.change.notify_all()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        size = len(self.data)
        begin, _, end = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(begin), min(int(end or size - 1), size - 1)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.send_header("ETag", '"one"')
        handler.end_headers()
        self.asked.append((first, last))
        for at in range(first, last + 1, STEP):
            self._wait_for(at)
            piece = self.data[at : min(at + STEP, last + 1)]
            handler.wfile.write(piece)

    def _wait_for(self, at: int) -> None:
        with self.change:
            self.change.wait_for(lambda: self.limit is None or at < self.limit, 60)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama", "llama.block_count": 1}, {"w": (1 << 20,)})
    with file_server() as server:
        yield Source(server, path.read_bytes())


class Program:
    """`tests.faults.downloading`; what it says is read line by line."""

    def __init__(self, home: Path, url: str) -> None:
        command = [sys.executable, "-m", "tests.faults.downloading", str(home), url]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self._lines = self.process.stdout

    def until(self, done: int) -> None:
        """Read on until so many bytes have arrived."""
        for line in self._lines:
            if line.startswith("progress") and int(line.split()[1]) >= done:
                return
        raise AssertionError("it ended before")

    def result(self) -> tuple[str, str]:
        """The model's id and path."""
        last = [line for line in self._lines if line.startswith("model")]
        assert self.process.wait(30) == 0
        _, id, path = last[0].split()
        return id, path

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._lines.close()


@pytest.fixture
def programs(home: Path, source: Source) -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.close()


def test_who_comes_second_joins_the_first(home: Path, source: Source, programs: list[Program]) -> None:
    half = len(source.data) // 2
    programs += [Program(home, source.url)]
    programs[0].until(half - STEP)
    programs += [Program(home, source.url)]
    programs[1].until(half - 2 * STEP)  # sees how far the other one is
    source.open()
    assert programs[0].result() == programs[1].result()
    assert sum(last + 1 - first for first, last in source.asked) == len(source.data)
    assert [model.id for model in ModelStore(Settings(home=home)).inventory().models] == ["model"]
    assert [path for path in (home / "models" / ".incoming").iterdir() if path.is_dir()] == []


def test_who_waits_goes_on_where_the_killed_one_was(home: Path, source: Source, programs: list[Program]) -> None:
    half = len(source.data) // 2
    programs += [Program(home, source.url)]
    programs[0].until(half - STEP)
    programs += [Program(home, source.url)]
    programs[1].until(half - 2 * STEP)
    programs[0].process.kill()
    source.open()
    _, path = programs[1].result()
    assert Path(path).read_bytes() == source.data
    assert source.asked[-1][0] >= half - STEP
    assert len(source.asked) <= 3  # the beginning, the rest, and what the killed one had not got


def test_a_download_goes_on_after_sigkill(home: Path, source: Source, programs: list[Program]) -> None:
    programs += [Program(home, source.url)]
    programs[0].until(len(source.data) // 2 - STEP)
    programs[0].close()
    source.open()
    programs += [Program(home, source.url)]
    _, path = programs[1].result()
    assert Path(path).read_bytes() == source.data
    assert source.asked[-1][0] >= len(source.data) // 2 - STEP
    assert len(source.asked) <= 3
