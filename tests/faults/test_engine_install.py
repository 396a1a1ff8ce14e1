"""Builds on their way here: cut, stalled, forged, hostile. What cannot be had leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.core.downloads.disk import disk_full
from genai_notebook.core.engines import archives, arrivals
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.schema import EngineProgress
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.errors import (
    BinaryError,
    ChecksumError,
    DownloadError,
    InsufficientResourcesError,
)
from tests.fakes import FakeEngine
from tests.fakes.machine import Machine
from tests.fakes.release_server import HOSTILE, engine_archive
from tests.fakes.releases import GIB, NO_LIBRARY, Shelf, library_archive, without_program
from tests.faults.builds import MB, NVIDIA, PROGRAM, install, large, left, resolve
from tests.faults.trying import House, grow_old, start
from tests.processes import assert_none_left

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts and signals"),
    pytest.mark.usefixtures("other"),
]


# ---- good


def test_builds_share_a_runtime_and_run_with_it(shelf: Shelf, tmp_path: Path) -> None:
    libraries = library_archive(size=100_000)
    house = House(tmp_path, machine=Machine(ram=16 * GIB, gpus=[NVIDIA]), shelf=shelf)
    llama, sd = FakeEngine(tmp_path / "f", "llama", proved=False), FakeEngine(tmp_path / "f", "sd", proved=False)
    first = shelf.add("llama", "cuda", llama, runtime=libraries)
    shelf.add("diffusion", "cuda", sd, format="zip", runtime=libraries)

    async def scenario(runtime: Runtime) -> list[str]:
        return [str((await start(runtime, kind)).engine) for kind in ("llm", "images")]

    assert house.run(scenario) == ["llama.cpp b2 (cuda)", "stable-diffusion.cpp b2 (cuda)"]
    assert first.runtime is not None
    assert shelf.files[first.runtime.path].sent == len(libraries)
    for fake in (llama, sd):
        folder = Path(fake.starts[0]["env"]["LD_LIBRARY_PATH"].split(os.pathsep)[0])
        assert folder.parent == tmp_path / "home" / "engines" / "runtimes"
        assert (folder / "libcudart.so.12").is_file()
    assert_none_left(tmp_path)


@pytest.mark.parametrize("format", ["tar.gz", "zip"])
def test_installing_tells_how_far_it_is(shelf: Shelf, home: Path, format: Any) -> None:
    shelf.add("llama", "cpu", PROGRAM, format=format)
    heard: list[tuple[str, dict[str, Any]]] = []
    news: list[EngineProgress] = []
    entry = install(shelf.manager(home, notify=lambda name, data: heard.append((name, data))), on_progress=news.append)
    assert (entry.state, entry.version, entry.variant) == ("usable", "b2", "cpu")
    assert {name for name, _ in heard} == {"binary-progress"}
    assert [
        msgspec.convert({k: v for k, v in data.items() if k != "server"}, EngineProgress) for _, data in heard
    ] == news
    assert {data["server"] for _, data in heard} == {"engines"}
    assert {each.stage for each in news} >= {"downloading", "unpacking"}


def test_what_is_installed_is_not_fetched_again(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    install(shelf.manager(home))
    sent = shelf.file(build).sent
    install(shelf.manager(home))
    resolve(shelf.manager(home))
    assert shelf.file(build).sent == sent


def test_what_is_here_but_broken_is_fetched_anew(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM)
    installed = install(shelf.manager(home))
    Path(installed.path).write_bytes(NO_LIBRARY)
    assert install(shelf.manager(home)) == installed
    assert Path(installed.path).read_bytes() == PROGRAM
    assert shelf.gets(build.archive) == 2
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_where_downloads_are_off_nothing_is_asked_and_nobody_is_warned(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM)
    settings = Settings(home=home, mirror=OFF)
    system = SystemInfo(settings, probe=Machine(ram=16 * GIB))
    engines = BinaryManager(settings, system=system, catalog=shelf.catalog)
    said: list[tuple[str, str]] = []
    assert resolve(engines, on_log=lambda message, level: said.append((level, message))).variant == "path"
    assert any("GENAI_NOTEBOOK_MIRROR=off" in message for _, message in said)
    assert "warn" not in {level for level, _ in said}
    assert not shelf.requests


# ---- connections that break


def test_a_connection_that_breaks_is_taken_up_again(shelf: Shelf, home: Path) -> None:
    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive, truncate=len(archive) // 2, times=2)
    assert install(shelf.manager(home)).state == "usable"
    assert shelf.file(build).sent < len(archive) + MB


def test_the_next_try_goes_on_where_the_last_one_came(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_notebook.core.downloads.fetch.RETRIES", 0)
    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive, truncate=len(archive) // 2)
    with pytest.raises(DownloadError):
        install(shelf.manager(home))
    assert any(name.endswith(".part") for name in left(home))
    shelf.again(build, archive)
    assert install(shelf.manager(home)).state == "usable"
    assert shelf.file(build).sent < len(archive) * 3 // 4
    assert not any(name.startswith(".incoming/") for name in left(home))


def test_a_slow_download_is_seen_to_move(shelf: Shelf, home: Path) -> None:
    archive = large(size=MB)
    shelf.add("llama", "cpu", b"", archive=archive, bytes_per_second=2 * MB)
    news: list[EngineProgress] = []
    install(shelf.manager(home), on_progress=news.append)
    counts = [each.done or 0 for each in news if each.stage == "downloading"]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == len(archive)


def test_a_server_that_says_no(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM, status=404)
    with pytest.raises(DownloadError, match="404"):
        install(shelf.manager(home))
    assert resolve(shelf.manager(home)).variant == "path"


def test_with_nothing_else_what_has_just_failed_is_tried_again(shelf: Shelf, home: Path, other: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM, status=404)
    assert resolve(shelf.manager(home)).variant == "path"
    archive = shelf.file(build).body
    asked = shelf.gets(build.archive)
    assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.gets(build.archive) == asked
    other.unlink()
    with pytest.raises(BinaryError, match="404"):
        resolve(shelf.manager(home))
    assert shelf.gets(build.archive) > asked
    shelf.again(build, archive)
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_a_server_that_says_not_now_and_then_yes(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM, status=503, times=1)
    assert install(shelf.manager(home)).state == "usable"


@pytest.mark.parametrize("kept", [False, True])
def test_a_stalled_server_is_left_for_what_is_here(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(arrivals, "FIRST_CONTACT", 0.5)
    monkeypatch.setattr("genai_notebook.core.downloads.fetch.RETRIES", 0)
    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive, truncate=len(archive) // 2)
    if kept:  # what an earlier download has left is no sign of life
        with pytest.raises(DownloadError):
            install(shelf.manager(home))
        (home / "cache" / "engines.json").unlink()
    shelf.again(build, archive, stall_after=0)
    said: list[str] = []
    assert resolve(shelf.manager(home), on_log=lambda message, level: said.append(message)).variant == "path"
    assert any("127.0.0.1 did not answer within 0.5 s" in message for message in said)
    assert any(name.endswith(".part") for name in left(home)) is kept
    shelf.again(build, archive)
    assert install(shelf.manager(home)).state == "usable"


def test_with_nothing_else_it_is_waited_for(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    monkeypatch.setattr(arrivals, "FIRST_CONTACT", 0.1)
    other.unlink()
    build = shelf.add("llama", "cpu", PROGRAM)
    real, late = shelf.file(build), threading.Event()
    real.before = lambda sent: late.wait(60)  # type: ignore[assignment,return-value]

    async def scenario() -> str:
        engines = shelf.manager(home)
        task = asyncio.ensure_future(engines.resolve("llama"))
        await asyncio.wait({task}, timeout=1)
        assert not task.done()
        late.set()
        return (await asyncio.wait_for(task, 60)).variant

    assert asyncio.run(scenario()) == "cpu"


# ---- archives that are not what was pinned, or are bad all the same


def test_a_wrong_digest_leaves_nothing_and_runs_nothing(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    archive = engine_archive(f"#!/bin/sh\ntouch '{planted}'\n".encode())
    build = shelf.add("llama", "cpu", b"", archive=archive, sha256="0" * 64)
    with pytest.raises(ChecksumError):
        install(shelf.manager(home))
    assert resolve(shelf.manager(home)).variant == "path"
    assert left(home) == []
    assert not planted.exists()
    asked = shelf.gets(build.archive)
    assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.gets(build.archive) == asked


def test_a_bit_that_falls_over_on_the_way(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", b"", archive=large(), corrupt=True)
    with pytest.raises(ChecksumError):
        install(shelf.manager(home))
    assert left(home) == []


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_hostile_archive_is_refused_as_a_whole(shelf: Shelf, home: Path, tmp_path: Path, what: str) -> None:
    archive = HOSTILE[what]()
    build = shelf.add("llama", "cpu", b"", archive=archive, format="zip" if what.startswith("zip") else "tar.gz")
    before = {path for path in tmp_path.rglob("*") if home not in path.parents}
    with pytest.raises(BinaryError, match="cannot be unpacked"):
        install(shelf.manager(home))
    assert resolve(shelf.manager(home)).variant == "path"
    assert left(home) == []
    assert {path for path in tmp_path.rglob("*") if home not in path.parents} - {home} == before - {home}
    assert not Path("/tmp/planted").exists()
    asked = shelf.gets(build.archive)
    assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.gets(build.archive) == asked


def test_an_archive_without_the_program(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", b"", archive=without_program())
    with pytest.raises(BinaryError, match="has no llama-server in it"):
        install(shelf.manager(home))
    assert resolve(shelf.manager(home)).variant == "path"
    assert left(home) == []


def test_a_full_disk_is_said_and_nothing_is_fetched_twice(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        raise disk_full(folder, needed, 0)

    archive = large()
    build = shelf.add("llama", "cpu", b"", archive=archive)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "ensure_space", full)
        with pytest.raises(InsufficientResourcesError):
            install(shelf.manager(home))
        assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.file(build).sent == len(archive)
    assert resolve(shelf.manager(home)).variant == "cpu"
    assert shelf.file(build).sent == len(archive)


# ---- programs that do not run


def _needs(path: Path) -> bytes:
    """A program that runs only while there is something at `path`."""
    return f"#!/bin/sh\n[ -e '{path}' ] || exit 127\n".encode() + PROGRAM.partition(b"\n")[2]


def test_a_build_that_does_not_run_is_not_fetched_again_for_a_day(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    build = shelf.add("llama", "cpu", _needs(library))
    assert resolve(shelf.manager(home)).variant == "path"
    library.touch()
    for hours, asked, variant in ((0, 1, "path"), (23, 1, "path"), (1.1, 2, "cpu")):
        grow_old(home, hours * 3600)
        assert resolve(shelf.manager(home)).variant == variant
        assert shelf.gets(build.archive) == asked


def test_an_engine_that_does_not_run_is_asked_again_in_a_minute(
    shelf: Shelf, home: Path, tmp_path: Path, other: Path
) -> None:
    library = tmp_path / "library"
    other.write_bytes(_needs(library))
    for _ in range(2):
        with pytest.raises(BinaryError, match="exit code 127"):
            resolve(shelf.manager(home))
    library.touch()
    with pytest.raises(BinaryError, match="in an earlier test"):
        resolve(shelf.manager(home))
    grow_old(home, 61)
    assert resolve(shelf.manager(home)).variant == "path"


# ---- one after the other


def test_the_chain_from_the_gpu_to_the_wheel(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    house = House(tmp_path, machine=Machine(ram=16 * GIB, gpus=[NVIDIA]), shelf=shelf)
    shelf.add("llama", "cuda", NO_LIBRARY, runtime=library_archive())
    shelf.add("llama", "vulkan", PROGRAM, sha256="0" * 64)
    shelf.add("llama", "cpu", PROGRAM, status=404)
    heard: list[tuple[str, dict[str, Any]]] = []

    async def scenario(runtime: Runtime) -> str:
        runtime.subscribe(lambda name, data: heard.append((name, data)))
        return (await runtime.llama_server._find_engine("llama", None)).variant

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert house.run(scenario) == "embedded"
    lines = [data for name, data in heard if name == "binary-log"]
    assert {(*sorted(data),) for data in lines} == {("level", "message", "server")}
    assert [data["level"] for data in lines] == ["info", "warn", "info", "warn", "info", "warn", "info"]
    words = [data["message"] for data in lines]
    for number, word in enumerate(["(cuda)", "libcuda.so.1", "(vulkan)", "(vulkan): ", "(cpu)", "404", "(embedded)"]):
        assert word in words[number]
    progress = [data for name, data in heard if name == "binary-progress"]
    assert {data["engine"] for data in progress} >= {f"llama.cpp b2 ({each})" for each in ("cuda", "vulkan")}
    assert {data["server"] for data in progress} == {"llama"}
    for data in progress:
        msgspec.convert({key: value for key, value in data.items() if key != "server"}, EngineProgress)
