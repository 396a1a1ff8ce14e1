"""A Runtime as a whole: its events, and its end."""

from __future__ import annotations

import json
from typing import Any

from tests.contract.conftest import Subject
from tests.contract.waiting import until
from tests.processes import alive, ours


def test_events_tell_states_and_ids_but_never_prompts_or_keys(subject: Subject) -> None:
    async def scenario() -> None:
        events: list[tuple[str, dict[str, Any]]] = []
        unsubscribe = subject.runtime.subscribe(lambda name, data: events.append((name, data)))
        info = await subject.start_llm()
        await subject.start_images()
        image = await subject.paint(prompt="a very private wish")

        def finished() -> bool:
            return any(name == "generation" and data["status"] == "complete" for name, data in events)

        await until(finished, "the event of the finished image")
        states = [data["info"]["status"] for name, data in events if name == "status" and data["server"] == "llama"]
        assert states[0] == "starting"
        assert states[-1] == "running"
        assert {data["id"] for name, data in events if name == "generation"} == {image.id}
        text = json.dumps(events)
        assert "private wish" not in text
        assert info.api_key not in text
        unsubscribe()
        count = len(events)
        await subject.llama.stop()
        assert len(events) == count

    subject.run(scenario())


def test_close_ends_everything_a_local_runtime_owns_and_nothing_of_a_server(subject: Subject) -> None:
    async def scenario() -> None:
        info = await subject.start_llm()
        await subject.start_images()
        await subject.paint()
        painter = subject.fake_sd.pid
        await subject.runtime.close()
        await subject.runtime.close()
        if subject.kind == "local":
            assert not alive(info.pid)
            assert not alive(painter)
            await until(lambda: not ours(subject.folder), "the end of guards")
        else:
            assert alive(info.pid)
            assert alive(painter)
            await subject.runtime.open()
            assert subject.llama.get_info().pid == info.pid

    subject.run(scenario())


def test_a_model_that_grows_is_noticed_by_the_next_reader(subject: Subject) -> None:
    """The store is the disk: what one Runtime registers, another one of the same home sees."""

    async def scenario() -> None:
        before = {model.id for model in await subject.models.list_models()}
        assert before == {subject.llm_id, subject.image_id}
        await subject.models.delete_model(subject.image_id)
        assert {model.id for model in await subject.models.list_models()} == {subject.llm_id}

    subject.run(scenario())
