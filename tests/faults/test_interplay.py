"""Starts, stops, images and offloads that get into each other's way: nothing is left behind, and wishes hold."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings
from genai_notebook.errors import ServerError
from genai_notebook.server.standalone import listen
from tests.contract.waiting import until
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.processes import assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")


class House:
    """A local Runtime with fake engines and both tiny models."""

    def __init__(self, folder: Path) -> None:
        self.llm_engine, self.sd_engine = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        settings = Settings(home=folder / "home", llama_server=self.llm_engine.path, sd_server=self.sd_engine.path)
        self.runtime = Runtime(settings, listen=listen)
        self.llama, self.diffusion = self.runtime.llama_server, self.runtime.diffusion_server
        self.orchestrator = self.runtime.orchestrator

    async def start_llm(self) -> Any:
        return await self.llama.start(model_id="tiny", port="auto")

    async def paint(self, **more: Any) -> Any:
        return await self.diffusion.generate_image(prompt="x", width=64, height=64, steps=3, **more)

    def always_offload(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def too_little_memory() -> bool:
            return self.llama.get_status() == "running"

        monkeypatch.setattr(self.orchestrator, "would_need_offload", too_little_memory)


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    made = House(folder)
    await made.runtime.open()
    await made.runtime.model_manager.register_model(path=str(tiny_llm(folder / "tiny.gguf")), type="llm")
    await made.runtime.model_manager.register_model(path=str(tiny_diffusion(folder / "picture.gguf")), type="diffusion")
    try:
        yield made
    finally:
        await made.runtime.close()


def play(folder: Path, scenario: Any) -> None:
    async def main() -> None:
        async with house(folder) as made:
            await asyncio.wait_for(scenario(made), 60)

    asyncio.run(main())
    assert_none_left(folder)


def test_an_image_cancelled_while_the_llm_steps_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(home: House) -> None:
        home.always_offload(monkeypatch)
        info = await home.start_llm()
        await home.diffusion.start(model_id="picture", port="auto")
        home.llm_engine.set(ignore_sigterm=True)
        image = asyncio.ensure_future(home.paint())
        await until(lambda: home.llama.get_status() == "stopping")
        image.cancel()
        with pytest.raises(asyncio.CancelledError):
            await image
        home.llm_engine.set(ignore_sigterm=None)
        await home.orchestrator.wait_for_reload()
        assert home.llama.get_status() == "running"
        assert not psutil.pid_exists(info.pid)
        assert home.llama.get_info().port == info.port
        assert home.orchestrator.get_saved_state() is None

    play(tmp_path, scenario)


def test_a_stop_is_carried_out_though_nobody_waits_for_it(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        info = await home.start_llm()
        home.llm_engine.set(ignore_sigterm=True)
        stop = asyncio.ensure_future(home.llama.stop())
        await until(lambda: home.llama.get_status() == "stopping")
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        await home.llama.stop()  # joins the one under way
        assert not psutil.pid_exists(info.pid)
        assert home.llama.get_status() == "stopped"

    play(tmp_path, scenario)


def test_closing_does_not_wait_for_a_stubborn_engine(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        info = await home.start_llm()
        home.llm_engine.set(ignore_sigterm=True)
        await home.runtime.close()
        assert not psutil.pid_exists(info.pid)
        with pytest.raises(ServerError, match="closed"):
            await home.start_llm()

    play(tmp_path, scenario)


def test_a_start_and_a_restart_wait_for_the_stop_under_way(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        first = await home.start_llm()
        stop = asyncio.ensure_future(home.llama.stop())
        while home.llama.get_status() == "running":  # noqa: ASYNC110 - the very next turn of the loop
            await asyncio.sleep(0)
        assert home.llama.get_status() == "stopping"
        again = await home.llama.restart()
        await stop
        assert (again.status, again.port, again.api_key) == ("running", first.port, first.api_key)
        assert again.pid != first.pid

    play(tmp_path, scenario)


def test_who_stops_the_llm_during_an_offload_means_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(home: House) -> None:
        home.always_offload(monkeypatch)
        await home.start_llm()
        await home.diffusion.start(model_id="picture", port="auto")
        image = asyncio.ensure_future(home.paint())
        await until(lambda: home.orchestrator.get_saved_state() is not None)
        await until(lambda: home.llama.get_status() == "stopped")
        await home.llama.stop()
        assert home.orchestrator.get_saved_state() is None
        await image
        await home.orchestrator.wait_for_reload()
        await asyncio.sleep(0.2)
        assert home.llama.get_status() == "stopped"

    play(tmp_path, scenario)


def test_image_generation_starts_again_after_a_crash_on_the_same_port(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        first = await home.diffusion.start(model_id="picture", port="auto")
        await home.paint()
        home.sd_engine.set(die={"signal": "SIGKILL"})
        await until(lambda: home.diffusion.get_status() == "crashed")
        home.sd_engine.set(die=None)
        again = await home.diffusion.start(model_id="picture", port=first.port)
        assert again.port == first.port
        assert (await home.paint()).width == 64

    play(tmp_path, scenario)


def test_a_starting_server_speaks_of_the_model_it_starts(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        other = tiny_llm(tmp_path / "other.gguf")
        await home.runtime.model_manager.register_model(path=str(other), type="llm")
        first = await home.start_llm()
        await home.llama.stop()
        home.llm_engine.set(load_seconds=300)
        start = asyncio.ensure_future(home.llama.start(model_id="other", port="auto"))
        while home.llama.get_status() == "stopped":  # noqa: ASYNC110 - the very next turn of the loop
            await asyncio.sleep(0)
        info = home.llama.get_info()
        assert (info.status, info.model_id, info.port, info.api_key) == ("starting", "other", None, None)
        await until(lambda: home.llama.get_info().pid)
        info = home.llama.get_info()
        assert info.model_id == "other"
        assert info.api_key not in (None, first.api_key)
        await home.llama.stop()
        with pytest.raises(ServerError) as caught:
            await start
        assert caught.value.code == "START_CANCELLED"

    play(tmp_path, scenario)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_forked_child_that_ends_takes_no_engine_along(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "fakes", "llama")
    model = tiny_llm(tmp_path / "tiny.gguf")
    script = f"""
import os, sys, time
from genai_notebook import llama_server, model_manager, run
run(model_manager.register_model(path={str(model)!r}))
pid = run(llama_server.start(model_id="tiny", port="auto")).pid
child = os.fork()
if child == 0:
    sys.exit(0)   # an ordinary end, with everything that runs at exit
os.waitpid(child, 0)
time.sleep(1)
print(llama_server.get_status(), llama_server.get_info().pid == pid, flush=True)
run(llama_server.stop())
"""
    environ = {
        **os.environ,
        "GENAI_NOTEBOOK_HOME": str(tmp_path / "home"),
        "GENAI_NOTEBOOK_RUNTIME": "local",
        "GENAI_NOTEBOOK_LLAMA_SERVER": str(fake.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["running", "True"], done.stderr
    assert_none_left(tmp_path)
