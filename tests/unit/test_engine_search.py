"""Going through the places: what is fetched, what is passed over, what is said, and hosts that do not answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.engines import arrivals, places, verdicts
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.verdicts import UNREACHED
from genai_notebook.core.schema import EngineProgress
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.errors import BinaryError, DownloadError
from tests.fakes.machine import Machine, card
from tests.fakes.releases import GIB, NO_LIBRARY, Shelf
from tests.processes import free_port

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: needs shell scripts")

PROGRAM = b"#!/bin/sh\necho 'version: %d (x)'\n"


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither wheels nor programs on the PATH."""
    monkeypatch.setattr(places, "is_there", lambda module: False)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "echo", "cat"):
        (tmp_path / "bin" / name).symlink_to(Path("/bin") / name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        yield shelf


@pytest.fixture
def on_path(tmp_path: Path) -> Path:
    """An engine that would do as well."""
    path = tmp_path / "bin" / "llama-server"
    path.write_bytes(PROGRAM % 1)
    path.chmod(0o755)
    return path


def resolve(engines: BinaryManager, **options: Any) -> Any:
    return asyncio.run(engines.resolve("llama", **options))


def states(engines: BinaryManager) -> dict[str, str]:
    return {each.variant: each.state for each in asyncio.run(engines.list()) if each.kind == "llama"}


def offline(shelf: Shelf, home: Path, port: int | None = None) -> BinaryManager:
    """The same releases, at an address where nobody listens."""
    settings = Settings(home=home, mirror=f"http://127.0.0.1:{port or free_port()}")
    system = SystemInfo(settings, probe=Machine(ram=16 * GIB))
    return BinaryManager(settings, system=system, catalog=shelf.catalog)


# ---- which is taken


def test_the_first_that_runs_is_fetched_and_used(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    engine = resolve(shelf.manager(home))
    assert (engine.name, engine.variant, engine.gpu) == ("llama.cpp b2 (cpu)", "cpu", False)
    assert engine.argv[0].startswith(str(home / "engines" / "llama" / "b2-cpu"))
    assert states(shelf.manager(home)) == {"cpu": "usable", "embedded": "missing", "path": "usable"}


def test_a_build_for_a_gpu_comes_before_the_one_for_the_processor(shelf: Shelf, home: Path) -> None:
    cuda = shelf.add("llama", "cuda", PROGRAM % 2)
    cpu = shelf.add("llama", "cpu", PROGRAM % 3)
    machine = Machine(ram=16 * GIB, gpus=[card(8 * GIB, cuda=True)])
    assert resolve(shelf.manager(home, machine)).variant == "cuda"
    assert (shelf.gets(cuda.archive) > 0, shelf.gets(cpu.archive)) == (True, 0)


def test_without_that_gpu_it_is_not_even_fetched(shelf: Shelf, home: Path) -> None:
    cuda = shelf.add("llama", "cuda", PROGRAM % 2)
    shelf.add("llama", "cpu", PROGRAM % 3)
    said: list[tuple[str, str]] = []
    engines = shelf.manager(home)
    assert resolve(engines, on_log=lambda message, level: said.append((message, level))).variant == "cpu"
    assert shelf.gets(cuda.archive) == 0
    assert said == [
        ("engine: llama.cpp b2 (cuda): no NVIDIA GPU with a driver was found", "debug"),
        ("fetching llama.cpp b2 (cpu)", "info"),
        ("engine: llama.cpp b2 (cpu)", "info"),
    ]
    assert states(engines) == {"cuda": "unsupported", "cpu": "usable", "embedded": "missing", "path": "missing"}


def test_what_does_not_run_is_passed_over_and_not_fetched_again(shelf: Shelf, home: Path, on_path: Path) -> None:
    build = shelf.add("llama", "cpu", NO_LIBRARY)
    assert resolve(shelf.manager(home)).variant == "path"
    asked = shelf.gets(build.archive)
    assert asked > 0
    engines = shelf.manager(home)
    said: list[str] = []
    assert resolve(engines, on_log=lambda message, level: said.append(message)).variant == "path"
    assert shelf.gets(build.archive) == asked
    assert "libcuda.so.1" in said[0]
    assert "in an earlier test" in said[0]
    assert not any("fetching" in message for message in said)
    assert states(engines) == {"cpu": "failed", "embedded": "missing", "path": "usable"}


def test_who_insists_has_it_fetched_again(shelf: Shelf, home: Path, on_path: Path) -> None:
    build = shelf.add("llama", "cpu", NO_LIBRARY)
    resolve(shelf.manager(home))
    asked = shelf.gets(build.archive)
    with pytest.raises(BinaryError, match=r"libcuda\.so\.1"):
        asyncio.run(shelf.manager(home).install("llama", "cpu"))
    assert shelf.gets(build.archive) > asked
    asked = shelf.gets(build.archive)
    assert resolve(shelf.manager(home), force_validation=True).variant == "path"
    assert shelf.gets(build.archive) > asked


def test_what_runs_after_all_is_forgiven(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = home.parent / "library"
    body = f"#!/bin/sh\n[ -e '{library}' ] || exit 127\necho version: 4\n".encode()
    shelf.add("llama", "cpu", body)
    with pytest.raises(BinaryError):
        resolve(shelf.manager(home))
    library.touch()  # as after apt-get install
    assert asyncio.run(shelf.manager(home).install("llama", "cpu")).state == "usable"
    asyncio.run(shelf.manager(home).remove("llama", "cpu"))
    assert states(shelf.manager(home))["cpu"] == "available"
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_when_all_fail_each_is_named(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "vulkan", NO_LIBRARY)
    shelf.add("llama", "cpu", b"#!/bin/sh\nkill -ILL $$\n")
    machine = Machine(ram=16 * GIB, gpus=[card(8 * GIB, vulkan=True)])
    with pytest.raises(BinaryError) as caught:
        resolve(shelf.manager(home, machine))
    candidates = (caught.value.details or {})["candidates"]
    assert [each["name"] for each in candidates] == [
        "llama.cpp b2 (vulkan)",
        "llama.cpp b2 (cpu)",
        "xllamacpp (embedded)",
        "llama-server on the PATH",
    ]
    reasons = [each["reason"] for each in candidates]
    assert "libcuda.so.1" in reasons[0]
    assert "SIGILL" in reasons[1]
    assert all(reason in str(caught.value) for reason in reasons)


def test_two_that_want_it_at_once_fetch_it_once(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM % 2)
    engines = shelf.manager(home)

    async def both() -> list[Any]:
        return await asyncio.gather(*(engines.resolve("llama") for _ in range(4)))

    found = asyncio.run(both())
    assert len({engine.name for engine in found}) == 1
    assert len([path for _, path, asked in shelf.requests if asked is None or asked.startswith("bytes=0-")]) == 1
    assert shelf.gets(build.archive) >= 1


def test_a_kind_does_not_wait_for_the_other(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2, stall_after=0)
    shelf.add("diffusion", "cpu", PROGRAM % 3, format="zip")
    engines = shelf.manager(home)

    async def both() -> str:
        stuck = asyncio.ensure_future(engines.resolve("llama"))
        try:
            return (await asyncio.wait_for(engines.resolve("diffusion"), 60)).variant
        finally:
            stuck.cancel()
            await asyncio.wait({stuck})

    assert asyncio.run(both()) == "cpu"


# ---- hosts that do not answer


def test_a_host_that_is_not_there_is_not_asked_again(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    said: list[str] = []
    for _ in range(2):
        engine = resolve(offline(shelf, home), on_log=lambda message, level: said.append(message))
        assert engine.variant == "path"
    assert sum(message == "fetching llama.cpp b2 (cpu)" for message in said) == 1
    assert any("127.0.0.1 could not be reached" in message for message in said)
    # Nor is it through another address of the same host, for that hour.
    assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.requests == []


def test_who_insists_has_it_asked(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    resolve(offline(shelf, home))
    with pytest.raises(DownloadError, match="cannot be fetched") as caught:
        asyncio.run(offline(shelf, home).install("llama", "cpu"))
    assert (caught.value.details or {})["reason"] == "unreachable"
    assert resolve(shelf.manager(home), force_validation=True).variant == "cpu"


def test_install_asks_it_too(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    resolve(offline(shelf, home))
    assert asyncio.run(shelf.manager(home).install("llama")).state == "usable"
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_once_it_has_answered_it_is_asked_by_all(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    shelf.add("diffusion", "cpu", PROGRAM % 3, format="zip")
    resolve(offline(shelf, home))
    asyncio.run(shelf.manager(home).install("llama"))
    assert asyncio.run(shelf.manager(home).resolve("diffusion")).variant == "cpu"


@pytest.mark.parametrize("since", [time.time() + 1e6, time.time() - 4000])
def test_a_time_that_is_over_or_to_come_blocks_nothing(shelf: Shelf, home: Path, on_path: Path, since: float) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "engines.json").write_text(json.dumps({"unreached": {"127.0.0.1": since}}))
    assert resolve(shelf.manager(home)).variant == "cpu"


@pytest.mark.parametrize("status", [404, 410])
def test_what_could_not_be_fetched_is_tried_again_after_an_hour(
    shelf: Shelf, home: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    build = shelf.add("llama", "cpu", PROGRAM % 2, status=status)
    engines = shelf.manager(home)
    assert resolve(engines).variant == "path"
    asked = shelf.gets(build.archive)
    assert resolve(engines).variant == "path"
    assert resolve(shelf.manager(home)).variant == "path"
    assert shelf.gets(build.archive) == asked
    assert engines._remembered["llama"].until < time.monotonic() + UNREACHED + 1
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + UNREACHED + 1)
    resolve(shelf.manager(home))
    assert shelf.gets(build.archive) > asked


@pytest.mark.parametrize("stalled", [False, True])
def test_a_host_that_says_nothing_is_left_for_another_engine(
    shelf: Shelf, home: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch, stalled: bool
) -> None:
    monkeypatch.setattr(arrivals, "FIRST_CONTACT", 0.5)
    shelf.add("llama", "cpu", PROGRAM % 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if stalled:
            silent.listen()  # connections are taken, and nothing is ever said
        engines = offline(shelf, home, silent.getsockname()[1])
        said: list[str] = []
        assert resolve(engines, on_log=lambda message, level: said.append(message)).variant == "path"
    expected = "did not answer within 0.5 s" if stalled else "could not be reached"
    assert any("127.0.0.1" in message for message in said), said
    assert not stalled or any(expected in message for message in said), said


# ---- downloads that are switched off


def test_switched_off_nothing_is_ever_connected_to(
    shelf: Shelf, home: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    settings = Settings(home=home, mirror=OFF)
    system = SystemInfo(settings, probe=Machine(ram=16 * GIB))
    engines = BinaryManager(settings, system=system, catalog=shelf.catalog)

    def connect(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    said: list[str] = []
    for force in (False, True):
        engine = resolve(engines, force_validation=force, on_log=lambda message, level: said.append(message))
        assert engine.variant == "path"
    assert any("GENAI_NOTEBOOK_MIRROR=off" in message for message in said)
    with pytest.raises(DownloadError, match="GENAI_NOTEBOOK_MIRROR=off"):
        asyncio.run(engines.install("llama", "cpu"))
    on_path.unlink()
    with pytest.raises(BinaryError, match="GENAI_NOTEBOOK_MIRROR=off"):
        resolve(engines)


def test_switched_off_what_is_here_is_still_used(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    resolve(shelf.manager(home))
    settings = Settings(home=home, mirror=OFF)
    system = SystemInfo(settings, probe=Machine(ram=16 * GIB))
    assert resolve(BinaryManager(settings, system=system, catalog=shelf.catalog)).variant == "cpu"


# ---- progress


def test_progress_goes_through_its_stages(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    news: list[EngineProgress] = []
    resolve(shelf.manager(home), on_progress=news.append)
    assert {(each.kind, each.engine) for each in news} == {("llama", "llama.cpp b2 (cpu)")}
    stages = list(dict.fromkeys(each.stage for each in news))
    assert stages == ["downloading", "verifying", "unpacking", "testing", "done"]
    for stage in ("downloading", "unpacking"):
        counts = [each.done or 0 for each in news if each.stage == stage]
        assert counts == sorted(counts)
    assert all(each.total is None or (each.done or 0) <= each.total for each in news)
