"""An engine that is on its way for one server while the other one has work to do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from genai_notebook.core.engines import places
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import ServerError
from tests.contract.waiting import until
from tests.fakes import FakeEngine
from tests.fakes.releases import Shelf
from tests.faults.trying import House, start
from tests.processes import assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")


def test_an_image_does_not_wait_for_an_llm_s_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "is_there", lambda module: False)

    async def scenario(runtime: Runtime) -> None:
        llm = runtime.llama_server
        await start(runtime, "images")
        assert not llm.is_fetching
        starting = asyncio.ensure_future(start(runtime, "llm"))
        await until(lambda: llm.is_fetching, "the download")
        assert llm.get_status() == "starting"
        painting = runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
        assert await asyncio.wait_for(painting, 30)
        assert llm.is_fetching
        assert llm.get_status() == "starting"
        await llm.stop()
        with pytest.raises(ServerError) as caught:
            await starting
        assert caught.value.code == "START_CANCELLED"
        assert not llm.is_fetching

    with Shelf() as shelf:
        house = House(tmp_path, shelf=shelf)
        shelf.add("diffusion", "cpu", FakeEngine(tmp_path / "f", "sd", proved=False), format="zip")
        shelf.add("llama", "cpu", FakeEngine(tmp_path / "f", "llama", proved=False), stall_after=100)
        house.run(scenario)
    assert_none_left(tmp_path)


def test_it_waits_for_the_load_that_comes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the LLM will hold is not known before it runs."""
    monkeypatch.setattr(places, "is_there", lambda module: False)

    async def scenario(runtime: Runtime) -> None:
        llm = runtime.llama_server
        await start(runtime, "images")
        starting = asyncio.ensure_future(start(runtime, "llm"))
        await until(lambda: llama.starts, "the load")
        assert not llm.is_fetching
        painting = asyncio.ensure_future(
            runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
        )
        await asyncio.wait({painting}, timeout=1)
        assert not painting.done()
        llama.reset()
        await llm.stop()
        with pytest.raises(ServerError):
            await starting
        assert await painting

    with Shelf() as shelf:
        house = House(tmp_path, shelf=shelf)
        llama = FakeEngine(tmp_path / "f", "llama", proved=False, load_seconds=60)
        shelf.add("diffusion", "cpu", FakeEngine(tmp_path / "f", "sd", proved=False), format="zip")
        shelf.add("llama", "cpu", llama)
        house.run(scenario)
    assert_none_left(tmp_path)
