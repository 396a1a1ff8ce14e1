"""The managers' behaviour with real engines on real files, as a suite for any engines: see `Contract`."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from genai_notebook.client.remote import RemoteRuntime
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings
from genai_notebook.errors import PortInUseError, ServerError
from genai_notebook.server.standalone import listen
from tests.contract.waiting import until
from tests.fakes.gguf_files import tiny_llm
from tests.jupyter import JupyterServer
from tests.models import IMAGE_ID, LLM_ID, sharded_llm
from tests.processes import alive

LIMIT = 120.0


class Real:
    """A Runtime with real engines; everything async runs on one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, runtime: Any) -> None:
        self.loop = loop
        self.runtime = runtime
        self.llama, self.diffusion = runtime.llama_server, runtime.diffusion_server

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop, settings: Settings, server: JupyterServer | None = None) -> Real:
        """In this process, or as a client of a server."""
        runtime: Any = (
            RemoteRuntime(server.url, server.token) if server else Runtime(settings, owner="kernel", listen=listen)
        )
        loop.run_until_complete(runtime.open())
        return cls(loop, runtime)

    def close(self) -> None:
        """End both engines, and the loop."""

        async def end() -> None:
            await self.llama.stop()
            await self.diffusion.stop()
            await self.runtime.close()

        self.run(end())
        self.loop.close()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, LIMIT))

    async def llm(self) -> Any:
        """The LLM, started if it is not up."""
        if self.llama.get_status() != "running":
            return await self.llama.start(model_id=LLM_ID, port="auto", context_size=512, parallel_requests=2)
        return self.llama.get_info()

    async def images(self) -> Any:
        if self.diffusion.get_status() != "running":
            return await self.diffusion.start(model_id=IMAGE_ID, port="auto")
        return self.diffusion.get_info()

    async def paint(self, **more: Any) -> Any:
        fields = {"prompt": "a lighthouse", "width": 64, "height": 64, "steps": 4, "cfg_scale": 1, **more}
        return await self.diffusion.generate_image(**fields)

    async def ask(self, question: str, info: Any, **more: Any) -> httpx.Response:
        system = {"role": "system", "content": "You answer questions correctly and briefly."}
        messages = [system, {"role": "user", "content": question}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 24, **more}
        headers = {"Authorization": f"Bearer {info.api_key}"}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            return await client.post(f"{info.url}/v1/chat/completions", json=body, headers=headers)


class Contract:
    """What must hold with every pair of engines. A subclass is a suite; its module has a fixture `real`."""

    def test_the_llm_gives_a_true_answer_to_those_with_the_key(self, real: Real) -> None:
        async def scenario() -> None:
            info = await real.llm()
            assert (info.status, info.health, info.context_size) == ("running", "ok", 512)
            assert alive(info.pid)
            assert await real.llama.is_healthy()
            reply = await real.ask("What is the capital of France?", info)
            assert "Paris" in reply.json()["choices"][0]["message"]["content"]
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                assert (await client.get(f"{info.url}/props")).status_code == 401
                props = await client.get(f"{info.url}/props", headers={"Authorization": f"Bearer {info.api_key}"})
                assert props.json()["total_slots"] == 2

        real.run(scenario())

    def test_the_llm_restarts_on_the_same_port_with_the_same_key(self, real: Real) -> None:
        async def scenario() -> None:
            before = await real.llm()
            after = await real.llama.restart()
            assert (after.port, after.api_key) == (before.port, before.api_key)
            assert not alive(before.pid)
            assert (await real.ask("Say hello.", after)).status_code == 200

        real.run(scenario())

    def test_the_death_of_the_llm_is_told(self, real: Real) -> None:
        async def scenario() -> None:
            info = await real.llm()
            errors: list[ServerError] = []
            real.llama.once("crashed", errors.append)
            os.kill(info.pid, signal.SIGKILL)
            await until(lambda: errors, "the event")
            details = errors[0].details or {}
            assert details["signal"] == "SIGKILL"
            assert 0 < len(details["log"]) <= 20
            assert real.llama.get_status() == "crashed"

        real.run(scenario())

    def test_a_port_in_use(self, real: Real) -> None:
        async def scenario() -> None:
            images = await real.images()
            await real.llama.stop()
            with pytest.raises(PortInUseError) as caught:
                await real.llama.start(model_id=LLM_ID, port=images.port)
            assert caught.value.holder

        real.run(scenario())

    def test_a_flag_the_engine_does_not_know(self, real: Real) -> None:
        async def scenario() -> None:
            await real.llama.stop()
            with pytest.raises(ServerError) as caught:
                await real.llama.start(model_id=LLM_ID, port="auto", extra_args=["--frobnicate"])
            details = caught.value.details or {}
            assert details["exit_code"] not in (None, 0)
            assert "--frobnicate" in "\n".join(details["log"])

        real.run(scenario())

    def test_a_file_that_is_no_model(self, real: Real, tmp_path: Path) -> None:
        """Its header is right, so that it can be registered; what should follow is missing."""

        async def scenario() -> None:
            await real.llama.stop()
            path = tiny_llm(tmp_path / "hollow.gguf")
            model = await real.runtime.model_manager.register_model(path=str(path), type="llm")
            try:
                with pytest.raises(ServerError) as caught:
                    await real.llama.start(model_id=model.id, port="auto")
                assert (caught.value.details or {})["log"]
            finally:
                await real.runtime.model_manager.delete_model(model.id)

        real.run(scenario())

    def test_a_model_in_numbered_files_answers(self, real: Real) -> None:
        async def scenario() -> None:
            await real.llama.stop()
            model = await real.runtime.model_manager.register_model(path=str(sharded_llm()), name="In three")
            try:
                assert model.path.endswith("-00001-of-00003.gguf")
                assert len(model.shards) == 3
                info = await real.llama.start(model_id=model.id, port="auto", context_size=512)
                reply = await real.ask("What is the capital of France?", info)
                assert "Paris" in reply.json()["choices"][0]["message"]["content"]
            finally:
                await real.llama.stop()
                await real.runtime.model_manager.delete_model(model.id)
            assert all(Path(shard).is_file() for shard in model.shards)

        real.run(scenario())

    def test_an_image_with_progress(self, real: Real) -> None:
        async def scenario() -> None:
            await real.images()
            seen: list[tuple[int, int, str, float]] = []
            image = await real.paint(seed=7, on_progress=lambda *report: seen.append(report))
            with Image.open(io.BytesIO(image.image)) as picture:
                picture.load()
                assert (picture.format, picture.size) == ("PNG", (64, 64))
            await until(lambda: seen and seen[-1][3] == 100)
            percentages = [report[3] for report in seen]
            assert percentages == sorted(percentages)
            assert percentages.count(100) == 1
            assert max(percentages[:-1]) <= 99
            assert {report[0] for report in seen if report[2] == "diffusion"} & {1, 2, 3, 4}
            same, other = await real.paint(seed=7), await real.paint(seed=8)
            assert same.image == image.image
            assert other.image != image.image

        real.run(scenario())

    def test_a_batch(self, real: Real) -> None:
        async def scenario() -> None:
            await real.images()
            batch = await real.paint(count=2, seed=3, steps=1)
            assert [image.seed for image in batch] == [3, 4]
            assert batch[0].image != batch[1].image

        real.run(scenario())

    def test_one_at_a_time(self, real: Real) -> None:
        async def scenario() -> None:
            await real.images()
            results = await asyncio.gather(real.paint(), real.paint(), return_exceptions=True)
            (error,) = [result for result in results if isinstance(result, ServerError)]
            assert error.code == "SERVER_BUSY"

        real.run(scenario())

    def test_a_cancelled_image_is_final_and_the_next_one_works(self, real: Real) -> None:
        async def scenario() -> None:
            await real.images()
            ids: list[str] = []
            steps: list[int] = []
            work = asyncio.ensure_future(
                real.paint(steps=100, on_start=ids.append, on_progress=lambda step, *_: steps.append(step))
            )
            await until(lambda: ids and steps and steps[-1] >= 2, "the second step", 60)
            assert await real.diffusion.cancel_image_generation(ids[0]) is True
            with pytest.raises(ServerError) as caught:
                await work
            assert caught.value.code == "GENERATION_CANCELLED"
            assert real.diffusion.get_generation(ids[0]).status == "error"
            assert (await real.paint(steps=1)).image

        real.run(scenario())

    def test_both_at_once_and_nothing_is_left(self, real: Real) -> None:
        async def scenario() -> None:
            info = await real.llm()
            await real.images()
            answer, image = await asyncio.gather(real.ask("What is the capital of France?", info), real.paint(steps=1))
            assert "Paris" in answer.json()["choices"][0]["message"]["content"]
            assert image.image
            painter = real.diffusion.get_info().pid
            await asyncio.gather(real.llama.stop(), real.diffusion.stop())
            assert not alive(info.pid)
            assert painter is None or not alive(painter)

        real.run(scenario())
