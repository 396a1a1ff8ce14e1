"""An LLM steps aside for an image, with accidents at every step: it always comes back, or it is said why not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from genai_notebook.core.runtime import Runtime
from genai_notebook.core.schema import CPUInfo, GPUInfo, MemoryInfo
from genai_notebook.core.servers.orchestrator import ResourceOrchestrator
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.probe import Held
from genai_notebook.errors import GenaiNotebookError, InsufficientResourcesError, ServerError
from genai_notebook.server.standalone import listen
from tests.contract.waiting import until
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.processes import assert_none_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other platform: POSIX signals")

MIB, GIB = 1 << 20, 1 << 30


class Machine:
    """A probe whose RAM is too small for both models while `small`: nothing is free beside an LLM. With GPUs if any."""

    def __init__(self, gpus: tuple[int, ...] = ()) -> None:
        self.small = False
        self.full = False
        self.vram = list(gpus)
        self.llama: Any = None
        self.painter: Any = None
        self.unified = False

    def cpu(self) -> CPUInfo:
        return CPUInfo(cores=4, physical_cores=4, model="test", architecture="x64")

    def memory(self) -> MemoryInfo:
        beside = self.llama is not None and self.llama.get_info().pid is not None
        free = 0 if self.full else 1000 if self.small and beside else 16 * GIB
        return MemoryInfo(total=16 * GIB, available=free, used=16 * GIB - free)

    def gpus(self) -> list[GPUInfo]:
        taken = self.painter is not None and self.painter.get_info().pid is not None
        shared = True if self.unified else None
        return [
            GPUInfo(
                available=True,
                type="nvidia",
                id=f"GPU-{n}",
                name=f"card {n}",
                vram=24 * GIB,
                vram_available=0 if taken else free,
                unified=shared,
            )
            for n, free in enumerate(self.vram)
        ]

    def held(self, pids: Iterable[int]) -> dict[int, Held]:
        return {pid: Held(ram=0, vram=None) for pid in pids}


class House:
    """A local Runtime with fake engines and both tiny models, on a machine of our choice."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.machine = machine
        self.llm_engine, self.sd_engine = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        for engine in (self.llm_engine, self.sd_engine):
            engine.prove(folder / "home", machine.gpus())
        settings = Settings(home=folder / "home", llama_server=self.llm_engine.path, sd_server=self.sd_engine.path)
        self.runtime = Runtime(settings, listen=listen, probe=machine)
        self.llama, self.diffusion = self.runtime.llama_server, self.runtime.diffusion_server
        self.orchestrator = self.runtime.orchestrator
        machine.llama = self.llama

    async def start_both(self) -> Any:
        info = await self.llama.start(model_id="tiny", port="auto")
        await self.diffusion.start(model_id="picture", port="auto")
        self.machine.small = True
        return info

    async def paint(self, **more: Any) -> Any:
        return await self.diffusion.generate_image(prompt="x", width=64, height=64, steps=3, **more)

    async def is_back(self, before: Any) -> None:
        """The LLM serves again, where it was and with its key; nothing is owed any more."""
        self.machine.small = False
        await self.orchestrator.wait_for_reload()
        await until(lambda: self.llama.get_status() == "running", "the LLM is back", 40)
        after = self.llama.get_info()
        assert (after.port, after.api_key, after.context_size) == (before.port, before.api_key, before.context_size)
        assert await self.llama.is_healthy()
        assert self.orchestrator.get_saved_state() is None


def play(folder: Path, scenario: Any, machine: Machine | None = None) -> None:
    async def main() -> None:
        home = House(folder, machine or Machine())
        await home.runtime.open()
        models = home.runtime.model_manager
        await models.register_model(path=str(tiny_llm(folder / "tiny.gguf")), type="llm")
        await models.register_model(path=str(tiny_diffusion(folder / "picture.gguf")), type="diffusion")
        try:
            await asyncio.wait_for(scenario(home), 90)
        finally:
            await home.runtime.close()

    asyncio.run(main())
    assert_none_left(folder)


def test_the_picture_is_there_before_the_reload_begins(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        events: list[str] = []

        def listener(name: str, data: dict[str, Any]) -> None:
            if name == "generation" and data["status"] == "complete":
                events.append("picture")
            elif name == "status" and data["server"] == "llama":
                events.append(data["info"]["status"])

        before = await home.start_both()
        home.runtime.subscribe(listener)
        await home.paint()
        assert not psutil.pid_exists(before.pid)
        await home.is_back(before)
        assert events.index("stopped") < events.index("picture") < events.index("starting")

    play(tmp_path, scenario)


def test_all_images_of_a_batch_and_those_in_line_are_made_before_it_comes_back(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        batch = asyncio.ensure_future(home.paint(count=2))
        await until(lambda: home.diffusion.get_info().busy)
        queued = asyncio.ensure_future(home.paint(queue=True))
        assert len((await batch).images) == 2
        assert (await queued).width == 64
        await home.is_back(before)
        assert len(home.llm_engine.starts) == 2

    play(tmp_path, scenario)


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_come_over_http_pass_the_same_gate(tmp_path: Path, count: int) -> None:
    import httpx

    async def scenario(home: House) -> None:
        before = await home.llama.start(model_id="tiny", port="auto")
        images = await home.diffusion.start(model_id="picture", port="auto", api_key=False)
        home.machine.small = True
        url = f"{images.url}/v1/images/generations"
        async with httpx.AsyncClient(trust_env=False) as client:
            body = {"prompt": "x", "width": 64, "height": 64, "steps": 3, "count": count}
            begun = await client.post(url, json=body)
            assert begun.status_code == 201
            state: dict[str, Any] = {}
            while state.get("status") not in ("complete", "error"):
                await asyncio.sleep(0.05)
                state = (await client.get(f"{url}/{begun.json()['id']}")).json()
        assert state["status"] == "complete"
        assert len(state["result"]["images"]) == count
        assert not psutil.pid_exists(before.pid)
        await home.is_back(before)

    play(tmp_path, scenario)


def test_with_nothing_free_nothing_is_started(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        await home.diffusion.start(model_id="picture", port="auto")
        home.machine.full = True
        with pytest.raises(InsufficientResourcesError) as caught:
            await home.llama.start(model_id="tiny", port="auto")
        assert caught.value.details is not None
        assert caught.value.details["available"] == "0 Bytes"
        with pytest.raises(InsufficientResourcesError, match="does not fit"):
            await home.paint()
        assert (home.llm_engine.starts, home.sd_engine.starts) == ([], [])
        assert home.diffusion.get_status() == "running"  # a later image may find room
        home.machine.full = False
        assert (await home.paint()).width == 64

    play(tmp_path, scenario)


async def _drain(home: House) -> None:
    import httpx

    info = home.llama.get_info()
    home.llm_engine.set(answer_seconds=3)

    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            headers = {"Authorization": f"Bearer {info.api_key}"}
            body = {"messages": [{"role": "user", "content": "x"}]}
            reply = await client.post(f"{info.url}/v1/chat/completions", json=body, headers=headers)
            assert reply.status_code == 200

    home.asking = asyncio.ensure_future(ask())  # type: ignore[attr-defined]
    await until(lambda: home.llm_engine.journal("chat"))


async def _nothing(home: House) -> None:
    pass


async def _slow_stop(home: House) -> None:
    home.llm_engine.set(ignore_sigterm=True)


async def _slow_load(home: House) -> None:
    home.sd_engine.set(load_seconds=60)


async def _slow_steps(home: House) -> None:
    home.sd_engine.set(step_seconds=20)


STEPS = {
    "while the LLM finishes an answer": (_drain, lambda home: home.orchestrator.get_saved_state() is not None),
    "while the LLM ends": (_slow_stop, lambda home: home.llama.get_status() == "stopping"),
    "while the image model is loaded": (_slow_load, lambda home: home.sd_engine.starts),
    "while it paints": (_slow_steps, lambda home: home.sd_engine.journal("job")),
    "at once": (_nothing, lambda home: True),
}


@pytest.mark.parametrize("how", ["interrupt", "cancel by id"])
@pytest.mark.parametrize("step", STEPS)
def test_an_image_that_is_cancelled(tmp_path: Path, step: str, how: str) -> None:
    prepare, reached = STEPS[step]

    async def scenario(home: House) -> None:
        before = await home.start_both()
        await prepare(home)
        ids: list[str] = []
        image = asyncio.ensure_future(home.paint(on_start=ids.append))
        await until(lambda: ids and reached(home), step, 30)
        if how == "interrupt":
            image.cancel()
            with pytest.raises(asyncio.CancelledError):
                await image
        else:
            assert await home.diffusion.cancel_image_generation(ids[0])
            with pytest.raises(ServerError) as caught:
                await image
            assert caught.value.code == "GENERATION_CANCELLED"
        home.llm_engine.set(ignore_sigterm=None, answer_seconds=None)
        home.sd_engine.set(load_seconds=None, step_seconds=None)
        await home.is_back(before)
        if prepare is _drain:
            await home.asking  # type: ignore[attr-defined]
            assert home.llama.get_info().pid == before.pid  # it had not even left

    play(tmp_path, scenario)


@pytest.mark.parametrize("trouble", ["fail_job", "crash while loading", "crash while painting", "no_result"])
def test_an_image_that_fails(tmp_path: Path, trouble: str) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        if trouble == "crash while loading":
            home.sd_engine.set(exit_at_start=3)
        elif trouble == "crash while painting":
            home.sd_engine.set(step_seconds=20)
        else:
            home.sd_engine.set(**{trouble: "broken" if trouble == "fail_job" else True})
        image = asyncio.ensure_future(home.paint())
        if trouble == "crash while painting":
            await until(lambda: home.sd_engine.journal("job"))
            os.kill(home.sd_engine.pid, signal.SIGKILL)
        with pytest.raises(GenaiNotebookError):
            await image
        await home.is_back(before)

    play(tmp_path, scenario)


def test_a_reload_that_fails_says_why_and_the_next_image_tries_again(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        home.llm_engine.set(exit_at_start=7)
        await home.paint()
        await home.orchestrator.wait_for_reload()
        saved = home.orchestrator.get_saved_state()
        assert saved is not None
        assert "exit" in (saved.error or "")
        assert "7" in (saved.error or "")
        assert saved.config["modelId"] == "tiny"
        assert len(home.llm_engine.starts) == 3  # one retry
        home.llm_engine.set(exit_at_start=None)
        await home.paint()
        await home.is_back(before)

    play(tmp_path, scenario)


def test_what_a_person_wishes_while_answers_are_finished_holds(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        await _drain(home)
        image = asyncio.ensure_future(home.paint())
        await until(lambda: home.orchestrator.get_saved_state() is not None)
        with pytest.raises(ServerError) as caught:  # refused, and no wish that counts
            await home.llama.start(model_id="tiny", port="auto")
        assert caught.value.code == "ALREADY_RUNNING"
        assert home.orchestrator.get_saved_state() is not None
        after = await home.llama.restart()
        home.machine.small = False
        assert (await image).width == 64
        await asyncio.sleep(0.3)
        assert home.llama.get_status() == "running"
        assert home.llama.get_info().pid == after.pid != before.pid
        home.asking.cancel()  # type: ignore[attr-defined]

    play(tmp_path, scenario)


def test_a_start_while_it_is_away_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        home.sd_engine.set(step_seconds=0.5)
        image = asyncio.ensure_future(home.paint())
        await until(lambda: home.sd_engine.journal("job"))
        with pytest.raises(ServerError) as caught:
            await home.llama.start(model_id="tiny", port="auto")
        assert caught.value.code == "ALREADY_RUNNING"
        assert "comes back" in caught.value.message
        await image
        await home.is_back(before)

    play(tmp_path, scenario)


@pytest.mark.parametrize("ends", ["refused", "cancelled"])
def test_an_orchestrator_that_is_no_gate_brings_it_back_too(
    tmp_path: Path, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        runtime = home.runtime
        own = ResourceOrchestrator(runtime.system_info, home.llama, home.diffusion, runtime.model_manager)
        leave = home.llama.step_aside

        async def leave_and_find_it_full(**needed: Any) -> bool:
            left = await leave(**needed)
            home.machine.full = ends == "refused"
            return left

        monkeypatch.setattr(home.llama, "step_aside", leave_and_find_it_full)
        home.llm_engine.set(ignore_sigterm=True if ends == "cancelled" else None)
        image = asyncio.ensure_future(own.orchestrate_image_generation(prompt="x", width=64, height=64, steps=3))
        if ends == "cancelled":
            await until(lambda: home.llama.get_status() == "stopping")
            image.cancel()
            home.llm_engine.set(ignore_sigterm=None)
        with pytest.raises((InsufficientResourcesError, asyncio.CancelledError)):
            await image
        home.machine.full = home.machine.small = False
        await asyncio.wait_for(own.wait_for_reload(), 30)
        saved = own.get_saved_state()
        if saved is None:
            await home.is_back(before)
        else:  # the reload met a machine that was still full, and says so
            assert saved.error

    play(tmp_path, scenario)


def test_an_idle_image_model_gives_way_before_the_llm_is_made_smaller(tmp_path: Path) -> None:
    """It fills the card; without it there is room for all layers of the LLM."""
    machine = Machine(gpus=(20 * GIB,))

    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=99)
        await home.diffusion.start(model_id="picture", port="auto")
        await home.paint()
        painter = home.diffusion.get_info().pid
        machine.painter = home.diffusion
        info = await home.llama.start(model_id="tiny", port="auto")
        assert painter is not None
        assert not psutil.pid_exists(painter)
        resolved = home.llama.resolved_config
        assert resolved is not None
        assert (resolved.gpu_layers, info.status) == (int(home.llm_engine.flag("--n-gpu-layers") or 0), "running")
        assert resolved.gpu_layers > 0

    play(tmp_path, scenario, machine)


def test_shared_graphics_memory_is_ram(tmp_path: Path) -> None:
    machine = Machine(gpus=(20 * GIB,))
    machine.unified = True

    async def scenario(home: House) -> None:
        await home.llama.start(model_id="tiny", port="auto", gpu_layers=0)
        home.sd_engine.set(params=[15_000, 0])
        await home.diffusion.start(model_id="picture", port="auto")
        await home.paint()  # now it is known: 15 GB, of 16 GB of RAM that the graphics shares
        assert await home.orchestrator.would_need_offload()

    play(tmp_path, scenario, machine)


def test_a_reload_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        before = await home.start_both()
        home.llm_engine.set(exit_at_start=7)
        await home.paint()
        await until(lambda: len(home.llm_engine.starts) == 2)
        home.llm_engine.set(exit_at_start=None)
        await home.is_back(before)

    play(tmp_path, scenario)


def test_who_forgets_the_saved_state_keeps_the_llm_away(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        await home.start_both()
        home.sd_engine.set(step_seconds=0.3)
        image = asyncio.ensure_future(home.paint())
        await until(lambda: home.sd_engine.journal("job"))
        home.orchestrator.clear_saved_state()
        await image
        await home.orchestrator.wait_for_reload()
        assert home.llama.get_status() == "stopped"

    play(tmp_path, scenario)


def test_the_engine_works_the_layers_out_after_an_out_of_memory_in_vram(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=2)
        await home.llama.start(model_id="tiny", port="auto", context_size=1024)
        first, second = home.llm_engine.starts
        assert "--n-gpu-layers" in first["argv"]
        assert "--n-gpu-layers" not in second["argv"]
        assert second["argv"][second["argv"].index("--fit") + 1] == "on"
        resolved = home.llama.resolved_config
        assert resolved is not None
        assert (resolved.gpu_layers, resolved.context_size) == (2, 1024)
        assert home.llama.footprint.vram == 4 * MIB
        await home.llama.restart()  # with what worked, and without working it out again
        assert home.llm_engine.flag("--n-gpu-layers") == "2"
        assert home.llm_engine.flag("--fit") == "off"

    play(tmp_path, scenario, Machine(gpus=(20 * GIB,)))


def test_an_engine_sees_the_cards_that_were_planned_with(tmp_path: Path) -> None:
    """The second card is full: left to itself llama.cpp would put a layer there all the same."""

    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=99)
        await home.llama.start(model_id="tiny", port="auto")
        assert home.llm_engine.starts[-1]["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-2"
        await home.llama.restart()
        assert home.llm_engine.starts[-1]["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-2"

    play(tmp_path, scenario, Machine(gpus=(20 * GIB, GIB, 20 * GIB)))


def test_layers_that_were_asked_for_stay(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=1)
        with pytest.raises(InsufficientResourcesError, match="ran out of memory"):
            await home.llama.start(model_id="tiny", port="auto", context_size=1024, gpu_layers=3)
        assert len(home.llm_engine.starts) == 1

    play(tmp_path, scenario, Machine(gpus=(20 * GIB,)))


def test_vram_that_others_hold_makes_the_llm_step_aside(tmp_path: Path) -> None:
    """A notebook's own PyTorch, say: it takes nearly all of the card while the LLM is in it."""

    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=99)
        home.sd_engine.set(params=[4000, 10])
        await home.llama.start(model_id="tiny", port="auto")
        await home.diffusion.start(model_id="picture", port="auto")
        assert not await home.orchestrator.would_need_offload()
        await home.paint()  # now it is known that it takes 4 GB, whatever the file's size
        await home.diffusion.release()
        home.machine.vram[0] = 3 * GIB
        assert await home.orchestrator.would_need_offload()
        home.machine.vram[0] = 6 * GIB
        assert not await home.orchestrator.would_need_offload()

    play(tmp_path, scenario, Machine(gpus=(20 * GIB,)))


def test_an_image_model_on_the_cpu_leaves_an_llm_on_the_gpu_alone(tmp_path: Path) -> None:
    async def scenario(home: House) -> None:
        home.llm_engine.set(most_layers=99)
        home.sd_engine.set(params=[0, 4000])
        await home.llama.start(model_id="tiny", port="auto")
        await home.diffusion.start(model_id="picture", port="auto", gpu_layers=0)
        home.machine.vram[0] = 1000
        await home.paint()
        await home.diffusion.release()
        assert not await home.orchestrator.would_need_offload()

    play(tmp_path, scenario, Machine(gpus=(20 * GIB,)))
