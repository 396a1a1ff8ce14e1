"""Engines and guards that are killed, hang, ignore what they are told, or fill the disk."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import psutil
import pytest

from genai_notebook.core.engines import session
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import GenaiNotebookError, ServerError
from tests.contract.waiting import until
from tests.fakes import eventually
from tests.faults.conftest import Scene, gone, guard_of
from tests.processes import alive


def run(scene: Scene, scenario: Any) -> None:
    """Run `scenario(runtime)` in this process, and close the Runtime whatever happens."""

    async def main() -> None:
        runtime = Runtime(scene.settings)
        await runtime.open()
        try:
            await asyncio.wait_for(scenario(runtime), 60)
        finally:
            await runtime.close()

    asyncio.run(main())


def test_a_killed_engine_is_a_crash_and_its_guard_ends(scene: Scene) -> None:
    async def scenario(runtime: Runtime) -> None:
        errors: list[ServerError] = []
        runtime.llama_server.on("crashed", errors.append)
        info = await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        assert info.pid
        guard = guard_of(info.pid).pid
        psutil.Process(info.pid).kill()
        await until(lambda: errors)
        assert (errors[0].details or {})["signal"] == "SIGKILL"
        assert runtime.llama_server.get_status() == "crashed"
        await until(lambda: not alive(guard), "the end of the guard")
        assert list(scene.settings.run.glob("engine-*.json")) == []

    run(scene, scenario)


def test_a_killed_guard_takes_the_engine_with_it(scene: Scene) -> None:
    async def scenario(runtime: Runtime) -> None:
        errors: list[ServerError] = []
        runtime.llama_server.on("crashed", errors.append)
        info = await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        assert info.pid
        guard_of(info.pid).kill()
        await until(lambda: not alive(info.pid or 0), "the end of the engine")
        await until(lambda: errors, "the event")
        assert runtime.llama_server.get_status() == "crashed"
        assert (await runtime.llama_server.restart()).status == "running"

    run(scene, scenario)


def test_an_engine_that_ignores_sigterm_is_killed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.EngineSession.stop, "__defaults__", (0.5,))
    scene.llama.set(ignore_sigterm=True)

    async def scenario(runtime: Runtime) -> None:
        info = await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        await runtime.llama_server.stop()
        assert scene.llama.journal("sigterm")
        assert not alive(info.pid or 0)
        assert runtime.llama_server.get_status() == "stopped"

    run(scene, scenario)


def test_a_silent_engine_that_never_listens_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENCE", 0.5)
    scene.llama.set(never_listen=True)

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(ServerError, match="neither answered nor printed"):
            await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        await until(lambda: not alive(scene.llama.pid), "the end of the engine")

    run(scene, scenario)


def test_an_engine_that_loads_long_but_talks_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENCE", 1.0)
    scene.llama.set(load_seconds=2.5, load_log_every=0.2)

    async def scenario(runtime: Runtime) -> None:
        assert (await runtime.llama_server.start(model_id="tiny-llm", port="auto")).status == "running"

    run(scene, scenario)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_death_in_the_middle_of_an_image_is_told_and_the_next_one_works(scene: Scene, name: str) -> None:
    scene.sd.set(hang_job=True)

    async def scenario(runtime: Runtime) -> None:
        images = runtime.diffusion_server
        await images.start(model_id="tiny-picture")
        work = asyncio.ensure_future(images.generate_image(prompt="x", width=64, height=64))
        await until(lambda: scene.sd.journal("job"))
        scene.sd.set(die={"signal": name})
        with pytest.raises(ServerError) as caught:
            await work
        assert (caught.value.details or {})["signal"] == name
        scene.sd.reset()
        if images.get_status() != "running":
            await images.restart()
        assert (await images.generate_image(prompt="x", width=64, height=64, steps=1)).image

    run(scene, scenario)


def test_a_full_disk_stops_the_log_but_not_the_engine(scene: Scene) -> None:
    scene.llama.set(flood=5000)
    owner = scene.owner("llama", "limit")  # "ready" says that the start went through
    eventually(lambda: scene.llama.journal("ready"))

    def size() -> int:
        return max((path.stat().st_size for path in scene.settings.logs.rglob("*") if path.is_file()), default=0)

    eventually(lambda: size() > 190_000, "the log to reach the limit")
    time.sleep(0.5)  # the rest of the flood
    assert size() <= 200_000
    assert alive(scene.llama.pid)
    assert owner.poll() is None
    owner.kill()
    gone(scene.llama.pid)


def test_a_home_that_cannot_be_made_is_a_typed_error(scene: Scene) -> None:
    scene.settings.run.rmdir() if scene.settings.run.exists() else None
    scene.settings.run.write_text("in the way")

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(GenaiNotebookError) as caught:
            await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        assert caught.value.code == "FILE_SYSTEM_ERROR"
        assert runtime.llama_server.get_status() in ("stopped", "crashed")

    run(scene, scenario)
    assert scene.llama.starts == []


def test_an_engine_program_that_is_none(scene: Scene) -> None:
    scene.llama.path.write_text("#!/no/such/interpreter\n")

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(GenaiNotebookError) as caught:
            await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        assert caught.value.code in ("BINARY_ERROR", "SERVER_ERROR")

    run(scene, scenario)


def test_a_frozen_engine_is_seen_and_can_be_stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.EngineSession.stop, "__defaults__", (0.5,))

    async def scenario(runtime: Runtime) -> None:
        info = await runtime.llama_server.start(model_id="tiny-llm", port="auto")
        psutil.Process(info.pid).send_signal(signal.SIGSTOP)
        assert await runtime.llama_server.is_healthy() is False
        await runtime.llama_server.stop()
        assert not alive(info.pid or 0)

    run(scene, scenario)
