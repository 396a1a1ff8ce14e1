"""Too little memory: what is made smaller, what gives way, and what is said, local and remote."""

from __future__ import annotations

import asyncio

import pytest

from genai_notebook.errors import InsufficientResourcesError, ServerError
from tests.contract.conftest import Subject
from tests.contract.waiting import until
from tests.processes import alive

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="other platform: the fakes look into /proc")


def test_an_automatic_context_is_halved_once(subject: Subject) -> None:
    async def scenario() -> None:
        subject.fake_llama.set(most_context=1500)
        info = await subject.start_llm()
        assert (info.status, info.context_size) == ("running", 1024)
        assert [start["argv"][start["argv"].index("--ctx-size") + 1] for start in subject.fake_llama.starts] == [
            "2048",
            "1024",
        ]
        log = "\n".join(await subject.llama.get_logs(None))
        assert "out of memory (alloc_tensor_range: failed to allocate CPU buffer" in log
        again = await subject.llama.restart()  # what worked is repeated
        assert (again.context_size, len(subject.fake_llama.starts)) == (1024, 3)

    subject.run(scenario())


def test_a_context_that_was_asked_for_is_not_changed(subject: Subject) -> None:
    async def scenario() -> None:
        subject.fake_llama.set(most_context=1500)
        with pytest.raises(InsufficientResourcesError) as caught:
            await subject.start_llm(context_size=2048)
        assert "ran out of memory while it was loaded" in caught.value.message
        details = caught.value.details or {}
        assert "smaller context size" in details["suggestion"]
        assert any("failed to allocate" in line for line in details["log"])
        assert subject.llama.get_status() == "stopped"
        assert len(subject.fake_llama.starts) == 1

    subject.run(scenario())


def test_twice_too_little_is_an_error(subject: Subject) -> None:
    async def scenario() -> None:
        subject.fake_llama.set(most_context=500)
        with pytest.raises(InsufficientResourcesError, match="context of 1024"):
            await subject.start_llm()
        assert len(subject.fake_llama.starts) == 2
        assert not any(alive(start["pid"]) for start in subject.fake_llama.starts)

    subject.run(scenario())


def test_a_resident_image_model_gives_way_to_an_llm_that_ran_out_of_memory(subject: Subject) -> None:
    async def scenario() -> None:
        await subject.start_images()
        await subject.paint()
        painter = subject.fake_sd.pid
        assert alive(painter)
        subject.fake_llama.set(most_context=1500)
        await subject.start_llm()
        assert not alive(painter)
        assert subject.diffusion.get_status() == "running"
        assert (await subject.paint()).width == 64

    subject.run(scenario())


def test_the_llm_gives_way_to_an_image_model_that_ran_out_of_memory(subject: Subject) -> None:
    async def scenario() -> None:
        first = await subject.start_llm()
        subject.fake_sd.set(no_room_with=first.pid)
        await subject.start_images()
        percentages: list[float] = []
        picture = await subject.paint(on_progress=lambda *report: percentages.append(report[3]))
        assert picture.width == 64
        assert len(subject.fake_sd.starts) == 2
        assert not alive(first.pid)
        await subject.runtime.orchestrator.wait_for_reload()
        await until(lambda: subject.llama.get_status() == "running", "the LLM is back")
        second = subject.llama.get_info()
        assert (second.port, second.api_key) == (first.port, first.api_key)
        assert second.pid != first.pid
        assert subject.runtime.orchestrator.get_saved_state() is None
        await until(lambda: percentages and percentages[-1] == 100)
        assert percentages == sorted(percentages)

    subject.run(scenario())


def test_an_image_model_that_never_fits_is_an_error_and_the_llm_comes_back(subject: Subject) -> None:
    async def scenario() -> None:
        first = await subject.start_llm()
        subject.fake_sd.set(no_room_with=1)
        await subject.start_images()
        with pytest.raises(ServerError, match="while it was starting"):
            await subject.paint()
        await subject.runtime.orchestrator.wait_for_reload()
        await until(lambda: subject.llama.get_status() == "running", "the LLM is back")
        assert subject.llama.get_info().port == first.port
        subject.fake_sd.set(no_room_with=None)
        assert (await subject.paint()).width == 64

    subject.run(scenario())


def test_answers_are_finished_before_the_llm_steps_aside(subject: Subject) -> None:
    """What is under way is not cut off, and what comes meanwhile waits and is then answered."""
    import httpx

    async def ask(info: object, limit: int) -> str:
        url, key = info.url, info.api_key  # type: ignore[attr-defined]
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": limit}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            reply = await client.post(
                f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
            )
            return str(reply.json()["choices"][0]["message"]["content"])

    async def scenario() -> None:
        first = await subject.start_llm()
        subject.fake_llama.set(answer_seconds=1.5)
        subject.fake_sd.set(no_room_with=first.pid)
        await subject.start_images()
        asking = asyncio.ensure_future(ask(first, 5))
        await until(lambda: subject.fake_llama.journal("chat"), "the request has come")
        picture = await subject.paint()
        assert asking.done()
        assert await asking == "Paris."
        assert picture.width == 64
        assert not alive(first.pid)

    subject.run(scenario())
