"""Going through the places: what is fetched, what is passed over, what is said, and hosts that do not answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from genai_notebook.core.engines import arrivals, memory, places, proof, verdicts
from genai_notebook.core.engines.choices import Choices
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.manager import BinaryManager
from genai_notebook.core.engines.search import Found, Tried
from genai_notebook.core.engines.trial import InconclusiveError, Proof, Trial, TrialFailedError
from genai_notebook.core.engines.verdicts import UNREACHED
from genai_notebook.core.schema import EngineProgress
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.errors import BinaryError, DownloadError, InvalidRequestError, ServerError
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


def test_what_is_installed_by_name_does_not_wait_for_a_search(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "vulkan", PROGRAM % 2, stall_after=0)
    shelf.add("llama", "cpu", PROGRAM % 3)
    engines = shelf.manager(home, Machine(ram=16 * GIB, gpus=[card(8 * GIB, vulkan=True)]))

    async def both() -> str:
        begun = asyncio.Event()
        stuck = asyncio.ensure_future(engines.resolve("llama", on_log=lambda *_: begun.set()))
        try:
            await asyncio.wait_for(begun.wait(), 60)
            assert not stuck.done()
            return (await asyncio.wait_for(engines.install("llama", "cpu"), 60)).state
        finally:
            stuck.cancel()
            await asyncio.wait({stuck})

    assert asyncio.run(both()) == "usable"


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
    assert engines._memory._noted["llama"].until < time.monotonic() + UNREACHED + 1
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + UNREACHED + 1)
    resolve(shelf.manager(home))
    assert shelf.gets(build.archive) > asked


def test_with_nothing_else_what_has_just_failed_is_tried_again_at_once(shelf: Shelf, home: Path) -> None:
    build = shelf.add("llama", "cpu", PROGRAM % 2, status=404)
    engines = shelf.manager(home)
    asked = 0
    for _ in range(2):
        with pytest.raises(BinaryError):
            resolve(engines)
        assert shelf.gets(build.archive) > asked
        asked = shelf.gets(build.archive)
    shelf.catalog.clear()
    shelf.add("llama", "cpu", PROGRAM % 2)
    assert resolve(engines).variant == "cpu"


def test_with_nothing_else_a_host_is_asked_again_at_once(shelf: Shelf, home: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    with pytest.raises(BinaryError, match=r"127\.0\.0\.1"):
        resolve(offline(shelf, home))
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_a_chosen_build_that_has_just_failed_is_tried_again_at_once(shelf: Shelf, home: Path, on_path: Path) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    assert resolve(offline(shelf, home)).variant == "path"
    assert resolve(shelf.manager(home)).variant == "path"
    Choices(home / "engines").set("llama", "cpu")
    assert resolve(shelf.manager(home)).variant == "cpu"


def test_a_restart_stays_with_the_engine_there_was(
    shelf: Shelf, home: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2, status=404)
    engines = shelf.manager(home)
    assert resolve(engines).variant == "path"
    shelf.catalog.clear()
    shelf.add("llama", "cpu", PROGRAM % 2)
    hour = time.monotonic() + UNREACHED + 1
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: hour))
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now + UNREACHED + 1)
    assert resolve(engines, stay=True).variant == "path"
    assert resolve(engines).variant == "cpu"


def test_nobody_stays_with_an_engine_that_is_gone(shelf: Shelf, home: Path, on_path: Path) -> None:
    engines = shelf.manager(home)
    assert resolve(engines, stay=True).variant == "path"
    shelf.add("llama", "cpu", PROGRAM % 2)
    assert resolve(engines, stay=True).variant == "path"
    on_path.unlink()
    assert resolve(engines, stay=True).variant == "cpu"


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
    said: list[tuple[str, str]] = []
    for force in (False, True):
        engine = resolve(engines, force_validation=force, on_log=lambda message, level: said.append((message, level)))
        assert engine.variant == "path"
        # It is the user's wish: neither a warning, nor a reason to look again in an hour.
        found = engines._memory.recall("llama")
        assert found is not None
        assert not found.postponed
    assert {level for message, level in said if "GENAI_NOTEBOOK_MIRROR=off" in message} == {"debug"}
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


# ---- what engines are tried with


def trial_of(model: str) -> Trial:
    return Trial(kind="llama", model_id=model, size=1, session=None, flags=lambda port: [])  # type: ignore[arg-type]


class Trials:
    """What comes of each trial, by the engine's variant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: dict[str, Exception] = {}
        self.made: list[tuple[str, str]] = []
        monkeypatch.setattr(proof, "try_engine", self._try)

    async def _try(self, engine: Engine, trial: Trial) -> Proof:
        self.made.append((engine.variant, trial.model_id))
        if (outcome := self.outcomes.get(engine.variant)) is not None:
            raise outcome
        return Proof(gpu=None)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    return Trials(monkeypatch)


def unknown_kind() -> ServerError:
    details = {"model_id": "m", "unknown_kind": True}
    return ServerError("m cannot be loaded: unknown model architecture: 'x'", details, code="MODEL_UNUSABLE")


def broken_file() -> ServerError:
    details = {"model_id": "m", "unknown_kind": False}
    return ServerError("m cannot be loaded: it is truncated", details, code="MODEL_UNUSABLE")


def unknown_flag() -> InvalidRequestError:
    return InvalidRequestError("extra_args: it does not know --x", {"field": "extra_args", "flag": "--x"})


@pytest.mark.parametrize("error", [unknown_kind(), unknown_flag()])
def test_what_one_engine_does_not_know_another_one_may(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials, error: Exception
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes["cpu"] = error
    engines = shelf.manager(home)
    for _ in range(2):
        assert resolve(engines, trial=trial_of("m")).variant == "path"
    # The flags may be others the next time; the model is the same.
    again = [("cpu", "m")] if isinstance(error, InvalidRequestError) else []
    assert trials.made == [("cpu", "m"), ("path", "m"), *again]
    trials.outcomes.clear()
    assert resolve(engines, trial=trial_of("other")).variant == "cpu"  # it says nothing of the engine


@pytest.mark.parametrize("error", [unknown_kind(), unknown_flag()])
def test_what_no_engine_knows_is_that_very_error(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials, error: Exception
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes = {"cpu": error, "path": error}
    with pytest.raises(type(error)) as caught:
        resolve(shelf.manager(home), trial=trial_of("m"))
    assert caught.value is error
    assert [variant for variant, _ in trials.made] == ["cpu", "path"]


@pytest.mark.parametrize("error", [unknown_kind(), unknown_flag()])
def test_what_the_user_s_own_engine_does_not_know_is_said_at_once(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials, error: Exception
) -> None:
    own = home.parent / "own-server"
    own.write_bytes(PROGRAM % 3)
    own.chmod(0o755)
    trials.outcomes["explicit"] = error
    settings = Settings(home=home, mirror=OFF, llama_server=own)
    engines = BinaryManager(settings, system=SystemInfo(settings, probe=Machine(ram=16 * GIB)), catalog=())
    with pytest.raises(type(error)) as caught:
        resolve(engines, trial=trial_of("m"))
    assert caught.value is error
    assert trials.made == [("explicit", "m")]


def test_a_broken_model_is_broken_for_all(shelf: Shelf, home: Path, on_path: Path, trials: Trials) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes["cpu"] = broken_file()
    with pytest.raises(ServerError, match="truncated"):
        resolve(shelf.manager(home), trial=trial_of("m"))
    assert trials.made == [("cpu", "m")]


def test_what_was_short_of_memory_is_asked_at_the_next_start(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes["cpu"] = TrialFailedError("out of memory", [], model_only=True, lasting=False)
    engines = shelf.manager(home)
    assert resolve(engines, trial=trial_of("m")).variant == "path"
    trials.outcomes.clear()
    assert resolve(engines, trial=trial_of("m"), stay=True).variant == "path"
    assert resolve(engines, trial=trial_of("m")).variant == "cpu"


def test_what_crashed_with_a_model_is_asked_for_another_one(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes["cpu"] = TrialFailedError("it crashed", [], model_only=True)
    engines = shelf.manager(home)
    for _ in range(2):
        assert resolve(engines, trial=trial_of("m")).variant == "path"
    trials.outcomes.clear()
    assert resolve(engines, trial=trial_of("other")).variant == "cpu"
    assert resolve(engines, trial=trial_of("m")).variant == "path"


def test_nobody_stays_with_an_engine_that_fails_with_the_model(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials
) -> None:
    shelf.add("llama", "cpu", PROGRAM % 2)
    trials.outcomes["cpu"] = TrialFailedError("it crashed", [], model_only=True)
    engines = shelf.manager(home)
    assert resolve(engines, trial=trial_of("m")).variant == "path"
    trials.outcomes.clear()
    assert resolve(engines, trial=trial_of("other")).variant == "cpu"
    assert resolve(engines, trial=trial_of("m"), stay=True).variant == "path"
    assert resolve(engines, trial=trial_of("other"), stay=True).variant == "path"


def test_what_could_not_be_tried_is_tried_at_the_next_start(
    shelf: Shelf, home: Path, on_path: Path, trials: Trials
) -> None:
    trials.outcomes["path"] = InconclusiveError("no memory")
    engines = shelf.manager(home)
    for _ in range(2):
        assert resolve(engines, trial=trial_of("m"), stay=True).variant == "path"
    assert trials.made == [("path", "m")] * 2


def test_what_is_proved_retires_what_nobody_has_used(shelf: Shelf, home: Path, trials: Trials) -> None:
    shelf.add("llama", "cpu", PROGRAM % 1, tag="b1")
    resolve(shelf.manager(home), trial=trial_of("m"))
    shelf.catalog.clear()
    shelf.add("llama", "cpu", PROGRAM % 2)
    resolve(shelf.manager(home), trial=trial_of("m"))
    older = home / "engines" / "llama" / "b1-cpu"
    assert older.is_dir()
    os.utime(older / "install.json", (time.time() - 8 * 86_400,) * 2)
    resolve(shelf.manager(home), trial=trial_of("m"))
    assert not older.exists()


def test_what_was_just_fetched_gets_more_time(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []
    real = proof.check_runs

    def check(*args: Any, **options: Any) -> str:
        seconds.append(options["seconds"])
        return real(*args, **options)

    monkeypatch.setattr(proof, "check_runs", check)
    shelf.add("llama", "cpu", PROGRAM % 2)
    resolve(shelf.manager(home))
    assert seconds == [20, 5]


def found_after(*tried: Tried, model: str | None = "m", computed: bool = True) -> Found:
    look = places.on_path("llama")
    engine = Engine(name="x", kind="llama", argv=["x"], version=None, variant="path")
    return Found(look, engine, computed, list(tried), model)


@pytest.mark.parametrize(
    ("model_only", "postponed", "model", "same", "other"),
    [
        (False, False, "m", True, True),  # it does not run: with no model
        (False, True, "m", True, True),  # it could not be fetched: that is for its hour
        (True, False, "m", True, False),  # it failed with this very model
        (True, True, "m", False, False),  # for want of memory
        (True, False, "other", False, True),
    ],
)
def test_what_failed_before_it_may_be_better_for_another_model(
    model_only: bool, postponed: bool, model: str, same: bool, other: bool
) -> None:
    tried = Tried(places.on_path("llama"), "x", model_only=model_only, postponed=postponed)
    found = found_after(tried, model=model)
    assert (found.is_for("m"), found.is_for("other")) == (same, other)
    assert (found.can_run("m"), found.can_run("other")) == (True, True)
    for worse in (
        msgspec.structs.replace(found, computed=False),
        msgspec.structs.replace(found, unfit=frozenset({"m"})),
    ):
        assert not worse.is_for("m")
        assert not worse.can_run("m")
    assert found_after(model=model).is_for("any")
