"""Trials that are stopped, put off until there is room, or asked for by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from genai_notebook.core.engines import trial
from genai_notebook.core.runtime import Runtime
from genai_notebook.errors import BinaryError, ServerError
from tests.contract.waiting import until
from tests.fakes.gguf_files import tiny_llm
from tests.fakes.machine import Machine
from tests.fakes.releases import GIB
from tests.faults.trying import House, start
from tests.processes import alive, assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")

KINDS = ["llm", "images"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield House(tmp_path)
    assert_none_left(tmp_path)


# ---- stopped in the middle


def stuck(kind: str, when: str) -> dict[str, Any]:
    if when == "load":
        return {"load_seconds": 60, "load_log_every": 0.1}
    return {"completion": "hang"} if kind == "llm" else {"hang_job": True}


async def _under_way(house: House, kind: str, when: str) -> int:
    fake = house.fakes[kind]
    if when == "load":
        await until(lambda: fake.starts, "the trial")
    else:
        paths = "/completion" if kind == "llm" else "/sdcpp/v1/img_gen"
        await until(lambda: [each for each in fake.journal("request") if each["path"] == paths], "the trial's work")
    return fake.pid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["load", "work"])
@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_trial_that_is_stopped_leaves_no_process(
    house: House, kind: str, when: str, how: Literal["stop", "cancel"]
) -> None:
    house.fakes[kind].set(**stuck(kind, when))

    async def scenario(runtime: Runtime) -> None:
        server: Any = runtime.llama_server if kind == "llm" else runtime.diffusion_server
        starting = asyncio.ensure_future(start(runtime, kind))
        pid = await _under_way(house, kind, when)
        if how == "stop":
            await server.stop()
        else:
            starting.cancel()
        await asyncio.wait({starting}, timeout=60)
        assert starting.done()
        if how == "stop":
            assert getattr(starting.exception(), "code", None) == "START_CANCELLED"
        await until(lambda: not alive(pid), "the end of the engine")
        assert server.get_status() == "stopped"
        assert list(house.settings.run.glob("engine-*.json")) == []
        house.fakes[kind].reset()
        assert (await start(runtime, kind)).status == "running"

    house.run(scenario)


# ---- images on a small machine


def full() -> Machine:
    """One that could hold the image model, but has no room for it right now."""
    return Machine(ram=16 * GIB, free=1)


def test_without_room_the_trial_waits_for_the_first_image(tmp_path: Path) -> None:
    house = House(tmp_path, machine=full())

    async def scenario(runtime: Runtime) -> None:
        info = await start(runtime, "images")
        assert info.status == "running"
        assert house.fakes["images"].starts == []
        order: list[str] = []

        class Gate:
            async def before_image(self) -> None:
                order.append(f"room made, {len(house.fakes['images'].starts)} started")
                house.machine.free = 16 * GIB

            async def evict_llm(self) -> bool:
                return False

            def after_image(self) -> None:
                order.append(f"over, {len(house.fakes['images'].starts)} started")

        runtime.diffusion_server.gate = Gate()
        await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
        await until(lambda: len(order) == 2)
        assert order == ["room made, 0 started", "over, 2 started"]
        await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)

    house.run(scenario)
    assert len(house.trials("images")) == 1
    assert len(house.fakes["images"].starts) == 2
    assert_none_left(tmp_path)


def test_an_image_says_why_its_engine_fails(tmp_path: Path) -> None:
    house = House(tmp_path, machine=full())
    house.fakes["images"].set(start_log=["the last words"], exit_at_start=5)

    async def scenario(runtime: Runtime) -> None:
        await start(runtime, "images")
        house.machine.free = 16 * GIB
        with pytest.raises(BinaryError, match="exited with code 5"):
            await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
        house.fakes["images"].reset()

    house.run(scenario)
    assert_none_left(tmp_path)


def test_an_image_that_is_cancelled_in_the_trial_leaves_no_process(tmp_path: Path) -> None:
    house = House(tmp_path, machine=full())
    house.fakes["images"].set(hang_job=True)

    async def scenario(runtime: Runtime) -> None:
        await start(runtime, "images")
        house.machine.free = 16 * GIB
        painting = asyncio.ensure_future(
            runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
        )
        pid = await _under_way(house, "images", "work")
        await runtime.diffusion_server.cancel_image_generation()
        with pytest.raises(ServerError) as caught:
            await painting
        assert caught.value.code == "GENERATION_CANCELLED"
        await until(lambda: not alive(pid), "the end of the engine")

    house.run(scenario)
    assert_none_left(tmp_path)


# ---- asked for by name


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_runs_it_with_the_smallest_model(house: House, kind: str) -> None:
    async def scenario(runtime: Runtime) -> list[Any]:
        word: Any = "llama" if kind == "llm" else "diffusion"
        first = await runtime.engine_manager.test(word)
        house.fakes[kind].set(exit_at_start=6, start_log=["the last words"])
        return [first, await runtime.engine_manager.test(word, "explicit")]

    good, bad = house.run(scenario)
    assert (good.state, good.in_use) == ("works", True)
    assert bad.state == "failed"
    assert "exited with code 6" in bad.reason
    assert "the last words" in bad.log


def test_a_test_with_a_broken_model_blames_the_model(house: House) -> None:
    house.fakes["llm"].set(model_error="unknown model architecture: 'xxxxx'")

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(ServerError) as caught:
            await runtime.engine_manager.test("llama")
        assert caught.value.code == "MODEL_UNUSABLE"

    house.run(scenario)


def test_a_test_without_room_only_runs_it(tmp_path: Path) -> None:
    house = House(tmp_path, machine=full())

    async def scenario(runtime: Runtime) -> Any:
        return await runtime.engine_manager.test("llama")

    tested = house.run(scenario)
    assert tested.state == "usable"
    assert "it was not asked to compute" in tested.reason
    assert house.fakes["llm"].starts == []


def test_a_model_that_only_makes_vectors_is_not_asked_to_write(house: House) -> None:
    file = tiny_llm(house.folder / "files" / "bert.gguf", **{"general.architecture": "bert", "bert.block_count": 4})

    async def scenario(runtime: Runtime) -> None:
        await runtime.model_manager.register_model(path=str(file), name="bert", type="llm")
        await start(runtime, "llm", "bert")

    house.run(scenario)
    asked = [each["path"] for each in house.fakes["llm"].journal("request")]
    assert "/embeddings" in asked
    assert "/completion" not in asked


def test_a_larger_model_is_waited_for_longer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 0.01)
    monkeypatch.setattr(trial, "BYTES_A_SECOND", 1)  # the tiny model has some hundred bytes
    house.fakes["llm"].set(load_seconds=1)
    assert house.works("llm")
