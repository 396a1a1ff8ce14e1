"""Installations that are killed, cancelled, or made by two at once: what is here stays, and nothing comes twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from genai_notebook.core.engines import releases
from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.manager import BinaryManager
from tests.contract.waiting import until
from tests.fakes import FakeEngine, eventually
from tests.fakes.release_server import engine_archive
from tests.fakes.releases import Shelf
from tests.faults.builds import MB, PROGRAM, install, large, left
from tests.faults.conftest import ROOT
from tests.faults.installing import Catalog
from tests.faults.trying import House
from tests.processes import assert_none_left

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts and signals"),
    pytest.mark.usefixtures("other"),
]


class Installation:
    """Processes that install one build, one after the other, into one home."""

    def __init__(self, folder: Path, shelf: Shelf, archive: bytes, **behaviour: Any) -> None:
        self.home, self.archive, self.shelf = folder / "home", archive, shelf
        self.build: Build = shelf.add("llama", "cpu", b"", archive=archive, **behaviour)
        self._catalog = folder / "catalog.json"
        self._catalog.write_bytes(msgspec.json.encode(Catalog(shelf.url, [self.build])))

    def begin(self, point: str = "") -> subprocess.Popen[str]:
        words = [str(self.home), str(self._catalog), *filter(None, [point])]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.installing", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def kill_at(self, reached: Callable[[subprocess.Popen[str]], None], point: str = "") -> None:
        with self.begin(point) as process:
            try:
                reached(process)
            finally:
                process.kill()

    def finish(self) -> str:
        """Its last line."""
        with self.begin() as process:
            output = process.communicate(timeout=120)[0]
        return output.splitlines()[-1] if output else ""


def here(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "here":
            return
    raise AssertionError("it has ended")


@pytest.fixture
def older(tmp_path: Path, shelf: Shelf) -> Callable[[], None]:
    """An older release that is here; the check that it still works."""
    shelf.add("llama", "cpu", PROGRAM + b"# old\n", tag="b1")
    install(shelf.manager(tmp_path / "home"))
    old = shelf.catalog.pop()

    def works() -> None:
        found = releases.Releases(tmp_path / "home" / "engines").find(old)
        assert found is not None
        assert b"version: 7" in subprocess.run([found.program, "--version"], capture_output=True, check=True).stdout

    return works


def test_killed_in_the_download_it_goes_on_there(tmp_path: Path, shelf: Shelf, older: Callable[[], None]) -> None:
    archive = large(size=8 * MB)
    installation = Installation(tmp_path, shelf, archive, bytes_per_second=8 * MB)

    def half(_: subprocess.Popen[str]) -> None:
        eventually(lambda: shelf.file(installation.build).sent > len(archive) // 2, "half of it", 60)

    installation.kill_at(half)
    older()
    assert not (installation.home / "engines" / "llama" / "b2-cpu").exists()
    shelf.again(installation.build, archive)
    assert installation.finish().startswith("done ")
    assert shelf.file(installation.build).sent < len(archive) * 3 // 4
    older()


@pytest.mark.parametrize("point", ["unpacking", "before-rename", "after-rename"])
def test_killed_later_nothing_is_fetched_again(
    tmp_path: Path, shelf: Shelf, older: Callable[[], None], point: str
) -> None:
    installation = Installation(tmp_path, shelf, large(size=MB))
    installation.kill_at(here, point)
    older()
    place = installation.home / "engines" / "llama" / "b2-cpu"
    assert place.exists() is (point == "after-rename")
    sent = shelf.file(installation.build).sent
    assert installation.finish() == f"done {place / 'llama-b9860' / 'llama-server'}"
    assert shelf.file(installation.build).sent == sent
    assert hashlib.sha256((place / "llama-b9860" / "llama-server").read_bytes()).digest() == (
        hashlib.sha256(PROGRAM).digest()
    )
    older()


def test_what_a_kill_has_left_behind_goes_with_the_proof(tmp_path: Path, shelf: Shelf) -> None:
    fake = FakeEngine(tmp_path / "f", "llama", proved=False)
    installation = Installation(tmp_path, shelf, engine_archive(fake.path))
    installation.kill_at(here, "after-rename")
    incoming = installation.home / "engines" / ".incoming"
    assert [path.name for path in incoming.iterdir() if path.is_dir()] == ["llama-b2-cpu"]
    House(tmp_path, shelf=shelf).works("llm")
    assert [path.name for path in incoming.iterdir() if path.is_dir()] == []
    assert_none_left(tmp_path)


def test_two_that_install_at_once_fetch_it_once(tmp_path: Path, shelf: Shelf) -> None:
    archive = large()
    installation = Installation(tmp_path, shelf, archive, bytes_per_second=6 * MB)
    with installation.begin() as first, installation.begin() as second:
        outputs = [process.communicate(timeout=120)[0].splitlines() for process in (first, second)]
    assert outputs[0][-1] == outputs[1][-1]
    assert outputs[0][-1].startswith("done ")
    assert shelf.file(installation.build).sent == len(archive)
    assert sum("stage queued" in output for output in outputs) <= 1
    assert sum("stage unpacking" in output for output in outputs) == 1


def test_who_waits_takes_over_from_one_that_is_killed(tmp_path: Path, shelf: Shelf) -> None:
    archive = large(size=8 * MB)
    installation = Installation(tmp_path, shelf, archive, bytes_per_second=4 * MB)
    with installation.begin() as first:
        eventually(lambda: shelf.file(installation.build).sent > len(archive) // 4, "a quarter of it", 60)
        with installation.begin() as second:
            assert second.stdout is not None
            while second.stdout.readline() not in ("stage queued\n", ""):
                pass
            first.kill()
            output = second.communicate(timeout=120)[0].splitlines()
    assert output[-1].startswith("done ")
    assert shelf.file(installation.build).sent < len(archive) * 3 // 2


# ---- cancelled


def ours() -> set[threading.Thread]:
    """The threads of this process, but for the server's."""
    return {thread for thread in threading.enumerate() if "process_request" not in thread.name}


def cancelled_at(engines: BinaryManager, reached: Callable[[], Any]) -> None:
    """Begin to install, cancel it then, and see that it really ends."""
    before = ours()

    async def scenario() -> None:
        task = asyncio.ensure_future(engines.install("llama", "cpu"))
        await until(reached, "the stage", 60)
        task.cancel()
        await asyncio.wait({task}, timeout=60)
        assert task.cancelled()

    asyncio.run(scenario())
    eventually(lambda: not ours() - before, "the end of its threads", 30)


def test_cancelled_in_the_download_the_part_stays(shelf: Shelf, home: Path) -> None:
    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive, stall_after=len(archive) // 2)
    cancelled_at(shelf.manager(home), lambda: shelf.file(build).sent >= len(archive) // 2)
    assert any(name.endswith(".part") for name in left(home))
    shelf.again(build, archive)
    assert install(shelf.manager(home)).state == "usable"
    assert shelf.file(build).sent < len(archive) * 3 // 4


@pytest.mark.parametrize("point", ["unpacking", "testing"])
def test_cancelled_later_the_archive_stays(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive)
    entered = threading.Event()

    def stuck(*args: Any, **_: Any) -> None:
        entered.set()
        work = next(arg for arg in args if hasattr(arg, "sleep"))
        while True:
            work.sleep(0.01)

    with monkeypatch.context() as patch:
        target = (releases, "unpack") if point == "unpacking" else (releases.Releases, "_tried")
        patch.setattr(*target, stuck)
        cancelled_at(shelf.manager(home), entered.is_set)
    assert install(shelf.manager(home)).state == "usable"
    assert shelf.file(build).sent == len(archive)


def test_cancelled_in_the_queue(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    incoming = home / "engines" / ".incoming"
    incoming.mkdir(parents=True)
    stages: list[Any] = []
    engines = shelf.manager(home, notify=lambda name, data: stages.append(data["stage"]))
    with FileLock(incoming / "llama-b2-cpu.lock"):
        cancelled_at(engines, lambda: "queued" in stages)
    assert shelf.gets(build.archive) == 0
    assert install(shelf.manager(home)).state == "usable"


def test_cancelled_while_nobody_answers(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM, stall_after=0)
    cancelled_at(shelf.manager(home), lambda: shelf.gets(build.archive))
    assert left(home) == [] or all(name.startswith(".incoming/") for name in left(home))


def test_a_search_that_is_cancelled_fetches_no_further(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", b"", archive=large(), bytes_per_second=MB)

    async def scenario() -> None:
        task = asyncio.ensure_future(shelf.manager(home).resolve("llama"))
        await until(lambda: shelf.file(build).sent, "the first bytes", 60)
        task.cancel()
        await asyncio.wait({task}, timeout=60)
        assert task.cancelled()

    asyncio.run(scenario())
    eventually(lambda: not shelf.file(build).open, "the end of the connection", 30)
