"""A machine too small for both: a real LLM really steps aside for a real image, and is back with the same address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genai_notebook.client.remote import RemoteRuntime
from genai_notebook.core.runtime import Runtime
from genai_notebook.server.standalone import listen
from tests.contract.waiting import until
from tests.engines.real import Real
from tests.jupyter import JupyterServer
from tests.models import LLM_ID, ahome_with_models
from tests.processes import alive, assert_none_left

pytestmark = pytest.mark.engines

#: The image model takes 495 MiB and is reckoned with a fifth more, the LLM 150 to 350: either fits, both do not.
LIMIT = 900 << 20


@pytest.fixture(params=["local", "remote"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Real]:
    loop = asyncio.new_event_loop()
    home = loop.run_until_complete(ahome_with_models(tmp_path))
    server = None
    if request.param == "remote":
        environ = {"GENAI_NOTEBOOK_HOME": str(home.settings.home), "GENAI_NOTEBOOK_MEMORY_LIMIT": str(LIMIT)}
        server = JupyterServer(tmp_path / "jupyter", environ)

    async def make() -> Any:
        settings = msgspec.structs.replace(home.settings, memory_limit=LIMIT)
        runtime: Any = RemoteRuntime(server.url, server.token) if server else Runtime(settings, listen=listen)
        await runtime.open()
        return runtime

    real = Real(loop, loop.run_until_complete(make()))
    yield real
    real.run(real.llama.stop())
    real.run(real.diffusion.stop())
    real.run(real.runtime.close())
    loop.close()
    if server is not None:
        server.stop()
    assert_none_left(tmp_path)


def test_it_steps_aside_and_is_back(small: Real) -> None:
    async def scenario() -> None:
        orchestrator = small.runtime.orchestrator
        before = await small.llm()
        await small.images()
        assert await orchestrator.would_need_offload()
        started: list[str] = []
        painting = asyncio.ensure_future(small.paint(steps=20, on_start=started.append))
        await until(lambda: not alive(before.pid), "the LLM has left", 30)
        saved = await asyncio.to_thread(orchestrator.get_saved_state)
        assert saved is not None
        assert (saved.config["port"], saved.config["contextSize"]) == (before.port, 512)
        assert (await painting).image
        await orchestrator.wait_for_reload()
        await until(lambda: small.llama.get_status() == "running", "the LLM is back", 30)
        after = small.llama.get_info()
        assert (after.port, after.api_key, after.context_size) == (before.port, before.api_key, before.context_size)
        assert after.pid != before.pid
        assert await asyncio.to_thread(orchestrator.get_saved_state) is None
        painter = small.diffusion.get_info().pid
        assert painter is None or not alive(painter)  # it gave way in its turn
        assert "Paris" in (await small.ask("What is the capital of France?", after)).text

    small.run(scenario())


def test_a_question_meanwhile_waits_and_is_answered(small: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_notebook import _chat, current

    async def scenario() -> None:
        await small.llm()
        await small.images()
        painting = asyncio.ensure_future(small.paint(steps=20))
        await until(lambda: small.llama.get_status() in ("stopping", "stopped"), "the LLM leaves", 30)
        answer = await _chat.achat(
            "What is the capital of France?",
            system="You answer questions correctly and briefly.",
            temperature=0,
            max_tokens=24,
        )
        assert "Paris" in answer.text
        assert (await painting).image

    monkeypatch.setattr(current, "llama_server", small.llama)
    monkeypatch.setattr(current, "orchestrator", small.runtime.orchestrator)
    small.run(scenario())


def test_starting_the_llm_makes_a_resident_image_model_give_way(small: Real) -> None:
    async def scenario() -> None:
        await small.images()
        await small.paint()
        painter = small.diffusion.get_info().pid
        assert alive(painter)
        large = {"context_size": 8192, "cache_type_k": "f32", "cache_type_v": "f32"}
        await small.llama.start(model_id=LLM_ID, port="auto", **large)
        assert not alive(painter)
        assert small.diffusion.get_status() == "running"

    small.run(scenario())
