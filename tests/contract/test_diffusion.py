"""Image generation's manager: one behaviour, local and remote."""

from __future__ import annotations

import asyncio
import io
import math
import os
import socket
from typing import Any

import httpx
import pytest
from PIL import Image

from genai_notebook.core.schema import (
    DiffusionServerInfo,
    ImageBatchResult,
    ImageGenerationConfig,
    ImageGenerationResult,
)
from genai_notebook.errors import (
    GenaiNotebookError,
    InvalidRequestError,
    ModelNotFoundError,
    PortInUseError,
    ServerError,
)
from tests.contract.conftest import SECRETS, Subject
from tests.contract.waiting import until
from tests.processes import alive

STAGES = ("loading", "diffusion", "decoding")


async def request(method: str, url: str, key: str | None = None, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.request(method, url, headers=headers, **more)


def size_of(image: ImageGenerationResult) -> tuple[int, int]:
    with Image.open(io.BytesIO(image.image)) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


class TestLife:
    def test_start_tells_everything_and_loads_nothing(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_images()
            assert isinstance(info, DiffusionServerInfo)
            assert (info.status, info.health, info.owner, info.busy) == ("running", "ok", subject.owner, False)
            assert info.model_id == subject.image_id
            assert info.pid is None
            assert info.port
            assert info.url == f"http://127.0.0.1:{info.port}"
            assert len(info.api_key or "") >= 20
            assert info.engine
            assert subject.fake_sd.starts == []
            assert subject.diffusion.get_info() == info
            assert await subject.diffusion.is_healthy() is True

        subject.run(scenario())

    def test_the_model_stays_loaded_between_images_and_ends_with_stop(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            await subject.paint()
            await subject.paint()
            assert len(subject.fake_sd.starts) == 1
            pid = subject.diffusion.get_info().pid
            assert pid == subject.fake_sd.pid
            assert await subject.diffusion.is_healthy() is True
            await subject.diffusion.stop()
            assert not alive(pid)
            info = subject.diffusion.get_info()
            assert (info.status, info.pid, info.port, info.model_id) == ("stopped", None, None, None)
            assert await subject.diffusion.is_healthy() is False
            await subject.diffusion.stop()

        subject.run(scenario())

    def test_restart_keeps_port_and_key(self, subject: Subject) -> None:
        async def scenario() -> None:
            before = await subject.start_images()
            after = await subject.diffusion.restart()
            assert (after.port, after.api_key, after.model_id) == (before.port, before.api_key, before.model_id)
            assert (await subject.paint()).image

        subject.run(scenario())

    def test_a_second_start_is_refused(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            with pytest.raises(ServerError) as caught:
                await subject.start_images()
            assert caught.value.code == "ALREADY_RUNNING"

        subject.run(scenario())

    def test_started_and_stopped_are_told(self, subject: Subject) -> None:
        async def scenario() -> None:
            seen: list[Any] = []
            subject.diffusion.once("started", seen.append)
            subject.diffusion.once("stopped", lambda: seen.append("stopped"))
            info = await subject.start_images()
            await until(lambda: seen)
            await subject.diffusion.stop()
            await until(lambda: len(seen) == 2)
            assert seen == [info, "stopped"]

        subject.run(scenario())


class TestRefusals:
    def test_an_unknown_model(self, subject: Subject) -> None:
        with pytest.raises(ModelNotFoundError) as caught:
            subject.run(subject.diffusion.start(model_id="no-such-model", port="auto"))
        assert caught.value.model_id == "no-such-model"
        assert subject.diffusion.get_status() == "stopped"

    def test_a_model_of_the_other_kind(self, subject: Subject) -> None:
        with pytest.raises(ModelNotFoundError):
            subject.run(subject.diffusion.start(model_id=subject.llm_id, port="auto"))

    @pytest.mark.parametrize(
        ("keywords", "field"),
        [
            ({"frobnicate": 1}, "frobnicate"),
            ({"port": 70000}, "port"),
            ({"threads": 0}, "threads"),
            ({"gpu_layers": 20}, "gpu_layers"),
            ({"vram_budget": -1}, "vram_budget"),
            ({"api_key": "two words"}, "api_key"),
            ({"extra_args": ["--listen-ip", "0.0.0.0"]}, "extra_args"),
        ],
        ids=str,
    )
    def test_a_wrong_option_is_named(self, subject: Subject, keywords: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            subject.run(subject.start_images(**keywords))
        assert (caught.value.details or {})["field"] == field
        assert subject.diffusion.get_status() == "stopped"

    def test_a_port_in_use_names_its_holder(self, subject: Subject) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(PortInUseError) as caught:
                subject.run(subject.start_images(port=port))
        assert caught.value.port == port
        assert str(os.getpid()) in (caught.value.holder or "")

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"width": 100}, "width"),
            ({"height": 10**9}, "height"),
            ({"steps": 0}, "steps"),
            ({"cfg_scale": math.nan}, "cfg_scale"),
            ({"seed": 2**70}, "seed"),
            ({"sampler": "magic"}, "sampler"),
            ({"count": 6}, "count"),
            ({"count": "3"}, "count"),
            ({"frobnicate": 1}, "frobnicate"),
            ({"prompt": None}, "prompt"),
            ({"prompt": "a\0b"}, "prompt"),
        ],
        ids=str,
    )
    def test_a_wrong_field_is_named(self, subject: Subject, fields: dict[str, Any], field: str) -> None:
        async def scenario() -> None:
            await subject.start_images()
            with pytest.raises(InvalidRequestError) as caught:
                await subject.paint(**fields)
            assert (caught.value.details or {})["field"] == field
            assert subject.diffusion.get_info().busy is False

        subject.run(scenario())

    def test_an_image_without_a_server(self, subject: Subject) -> None:
        with pytest.raises(ServerError) as caught:
            subject.run(subject.paint())
        assert caught.value.code == "SERVER_NOT_RUNNING"


class TestImages:
    def test_an_image(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            image = await subject.paint(width=128, height=64, seed=7)
            assert isinstance(image, ImageGenerationResult)
            assert size_of(image) == (image.width, image.height) == (128, 64)
            assert (image.seed, image.format) == (7, "png")
            assert image.time_taken >= 0
            assert image.id

        subject.run(scenario())

    def test_the_engine_gets_every_default_explicitly(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(step_seconds=0.0)
            await subject.start_images()
            image = await subject.diffusion.generate_image(
                prompt="a {braced} prompt\n--and flags", negative_prompt="mud"
            )
            assert (image.width, image.height) == (512, 512)
            (job,) = subject.fake_sd.journal("job")
            body = job["body"]
            assert body["prompt"] == "a {braced} prompt\n--and flags"
            assert body["negative_prompt"] == "mud"
            assert (body["width"], body["height"], body["seed"]) == (512, 512, image.seed)
            assert body["sample_params"]["sample_steps"] == 20
            assert body["sample_params"]["sample_method"] == "euler_a"
            assert body["sample_params"]["guidance"]["txt_cfg"] == 7.5

        subject.run(scenario())

    def test_seeds_are_drawn_by_us(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            seeds = [(await subject.paint(**more)).seed for more in ({}, {}, {"seed": -1})]
            assert len(set(seeds)) == 3
            assert all(seed >= 0 for seed in seeds)
            assert [job["body"]["seed"] for job in subject.fake_sd.journal("job")] == seeds
            one, two = await subject.paint(seed=5), await subject.paint(seed=5)
            assert one.image == two.image

        subject.run(scenario())

    def test_a_configuration_object_and_keywords_on_top(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            config = ImageGenerationConfig(prompt="x", width=64, height=64, steps=2, seed=1)
            image = await subject.diffusion.generate_image(config, seed=2)
            assert (image.seed, image.width) == (2, 64)

        subject.run(scenario())

    def test_progress_never_falls_and_has_one_hundred_at_the_end(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(load_seconds=0.5, step_seconds=0.1)
            await subject.start_images()
            for first in (True, False):
                seen: list[tuple[int, int, str, float | None]] = []
                await subject.paint(steps=5, on_progress=lambda *report, seen=seen: seen.append(report))
                await until(lambda seen=seen: seen and seen[-1][3] == 100)
                percentages = [report[3] for report in seen]
                assert all(isinstance(value, (int, float)) for value in percentages)
                assert percentages == sorted(percentages)
                assert percentages.count(100) == 1
                assert all(value <= 99 for value in percentages[:-1])
                assert {report[2] for report in seen} <= set(STAGES)
                order = [STAGES.index(report[2]) for report in seen]
                assert order == sorted(order)
                assert ("loading" in {report[2] for report in seen}) == first
                steps = {report[0] for report in seen if report[2] == "diffusion" and report[1] == 5}
                assert len(steps - {0}) >= 3
                assert len(set(percentages)) >= 4

        subject.run(scenario())

    def test_on_start_tells_the_id_and_the_generation_can_be_followed(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(step_seconds=0.1)
            await subject.start_images()
            ids: list[str] = []
            work = asyncio.ensure_future(subject.paint(steps=5, on_start=ids.append))
            await until(lambda: ids)
            await until(lambda: subject.diffusion.get_generation(ids[0]).progress)
            state = subject.diffusion.get_generation(ids[0])
            assert (state.id, state.status) == (ids[0], "in_progress")
            assert subject.diffusion.get_info().busy is True
            image = await work
            state = subject.diffusion.get_generation(ids[0])
            assert state.status == "complete"
            assert state.result.images[0].image == image.image
            assert state.result.images[0].seed == image.seed
            assert state.updated_at >= state.created_at
            assert image.id == ids[0]
            await until(lambda: subject.diffusion.get_info().busy is False)
            assert subject.diffusion.get_generation("no-such-id") is None

        subject.run(scenario())

    def test_a_batch_counts_its_seeds_up(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            seen: list[float | None] = []
            batch = await subject.paint(count=3, seed=10, on_progress=lambda *report: seen.append(report[3]))
            assert isinstance(batch, ImageBatchResult)
            assert [image.seed for image in batch] == [10, 11, 12]
            assert len({image.image for image in batch}) == 3
            assert {image.id for image in batch} == {batch.id}
            await until(lambda: seen and seen[-1] == 100)
            assert seen == sorted(seen)  # type: ignore[type-var]
            assert seen.count(100) == 1

        subject.run(scenario())

    def test_callbacks_may_be_coroutine_functions_and_may_fail(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            seen: list[Any] = []

            async def on_progress(*report: Any) -> None:
                await asyncio.sleep(0)
                seen.append(report)
                raise RuntimeError("a callback's own bug")

            assert (await subject.paint(on_progress=on_progress)).image
            await until(lambda: seen)

        subject.run(scenario())

    def test_the_engine_sees_no_secrets_of_its_owner(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            await subject.paint()

        subject.run(scenario())
        start = subject.fake_sd.starts[-1]
        assert not set(SECRETS.values()) & set(start["env"].values())
        assert subject.fake_sd.flag("--listen-ip") == "127.0.0.1"
        assert subject.fake_sd.flag("--listen-port") != str(subject.diffusion.get_info().port)

    def test_flags(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images(threads=1, gpu_layers=0, vram_budget=2048, extra_args=["--diffusion-fa"])
            await subject.paint()

        subject.run(scenario())
        assert subject.fake_sd.flag("--threads", "-t") == "1"
        assert subject.fake_sd.flag("--max-vram") == "2"
        assert {"--clip-on-cpu", "--vae-on-cpu", "--diffusion-fa"} <= set(subject.fake_sd.starts[-1]["argv"])


class TestOneAtATime:
    def test_a_second_one_is_refused_while_the_first_runs(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            results = await asyncio.gather(*(subject.paint() for _ in range(4)), return_exceptions=True)
            images = [result for result in results if isinstance(result, ImageGenerationResult)]
            errors = [result for result in results if isinstance(result, ServerError)]
            assert len(images) == 1
            assert [error.code for error in errors] == ["SERVER_BUSY"] * 3
            assert (await subject.paint()).image

        subject.run(scenario())

    def test_unless_it_asks_to_queue(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            images = await asyncio.gather(*(subject.paint(seed=seed, queue=True) for seed in range(3)))
            assert [image.seed for image in images] == [0, 1, 2]

        subject.run(scenario())


class TestCancel:
    @pytest.mark.parametrize("how", ["by id", "all", "the waiting task"])
    def test_a_running_one(self, subject: Subject, how: str) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(hang_job=True)
            await subject.start_images()
            ids: list[str] = []
            work = asyncio.ensure_future(subject.paint(on_start=ids.append))
            await until(lambda: ids and subject.fake_sd.journal("job"))
            if how == "the waiting task":
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
            else:
                assert await subject.diffusion.cancel_image_generation(ids[0] if how == "by id" else None) is True
                with pytest.raises(ServerError) as caught:
                    await work
                assert caught.value.code == "GENERATION_CANCELLED"
            state = subject.diffusion.get_generation(ids[0])
            assert (state.status, state.error.code) == ("error", "GENERATION_CANCELLED")
            subject.fake_sd.set(hang_job=None)
            await until(lambda: subject.diffusion.get_info().busy is False, "busy to end")
            assert (await subject.paint()).image
            assert subject.diffusion.get_generation(ids[0]) == state  # final: no late word changes it

        subject.run(scenario())

    def test_between_the_images_of_a_batch(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(step_seconds=0.1)
            await subject.start_images()
            ids: list[str] = []
            work = asyncio.ensure_future(subject.paint(count=5, on_start=ids.append))
            await until(lambda: len(subject.fake_sd.journal("job")) == 2, "the second image")
            assert await subject.diffusion.cancel_image_generation(ids[0]) is True
            with pytest.raises(ServerError) as caught:
                await work
            assert caught.value.code == "GENERATION_CANCELLED"
            assert len(subject.fake_sd.journal("job")) == 2

        subject.run(scenario())

    def test_while_the_model_loads(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(load_seconds=300)
            await subject.start_images()
            work = asyncio.ensure_future(subject.paint())
            await until(lambda: subject.fake_sd.starts)
            assert await subject.diffusion.cancel_image_generation() is True
            with pytest.raises(ServerError) as caught:
                await work
            assert caught.value.code == "GENERATION_CANCELLED"
            await until(lambda: not alive(subject.fake_sd.pid), "the end of the engine")

        subject.run(scenario())

    def test_one_that_waits_in_the_queue(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(step_seconds=0.2)
            await subject.start_images()
            ids: list[str] = []
            first = asyncio.ensure_future(subject.paint())
            await until(lambda: subject.diffusion.get_info().busy)
            second = asyncio.ensure_future(subject.paint(queue=True, on_start=ids.append))
            await until(lambda: ids)
            assert await subject.diffusion.cancel_image_generation(ids[0]) is True
            with pytest.raises(ServerError):
                await second
            assert (await first).image
            assert len(subject.fake_sd.journal("job")) == 1

        subject.run(scenario())

    def test_nothing_to_cancel(self, subject: Subject) -> None:
        async def scenario() -> None:
            await subject.start_images()
            image = await subject.paint()
            assert await subject.diffusion.cancel_image_generation() is False
            assert await subject.diffusion.cancel_image_generation(image.id) is False
            assert await subject.diffusion.cancel_image_generation("no-such-id") is False
            assert subject.diffusion.get_generation(image.id).status == "complete"

        subject.run(scenario())

    def test_stop_ends_what_is_being_painted(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(hang_job=True)
            await subject.start_images()
            work = asyncio.ensure_future(subject.paint())
            await until(lambda: subject.fake_sd.journal("job"))
            await subject.diffusion.stop()
            with pytest.raises(ServerError) as caught:
                await work
            assert caught.value.code == "GENERATION_CANCELLED"
            assert not alive(subject.fake_sd.pid)

        subject.run(scenario())


class TestFaults:
    async def fails(self, subject: Subject, **more: Any) -> ServerError:
        with pytest.raises(ServerError) as caught:
            await subject.paint(**more)
        return caught.value

    async def works_again(self, subject: Subject) -> None:
        subject.fake_sd.reset()
        if subject.diffusion.get_status() != "running":
            await subject.diffusion.restart()
        assert (await subject.paint()).image

    def test_a_job_that_fails(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(fail_job="the paint has run out")
            await subject.start_images()
            error = await self.fails(subject)
            assert "the paint has run out" in str(error)
            await self.works_again(subject)

        subject.run(scenario())

    @pytest.mark.parametrize("words", [{"no_result": True}, {"garbage": True}], ids=str)
    def test_an_engine_that_answers_nonsense(self, subject: Subject, words: dict[str, Any]) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(**words)
            await subject.start_images()
            error = await self.fails(subject)
            assert error.code
            await self.works_again(subject)

        subject.run(scenario())

    def test_an_engine_that_exits_while_it_loads(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(exit_at_start=9, start_log=["[ERROR] model.cpp:1 - no tensors here"])
            await subject.start_images()
            error = await self.fails(subject)
            details = error.details or {}
            if subject.kind == "local":  # the wire of the image routes has a message and a code only
                assert details["exit_code"] == 9
                assert any("no tensors here" in line for line in details["log"])
            assert "9" in str(error)
            await self.works_again(subject)

        subject.run(scenario())

    def test_an_engine_that_dies_in_the_middle(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.fake_sd.set(hang_job=True)
            await subject.start_images()
            work = asyncio.ensure_future(subject.paint())
            await until(lambda: subject.fake_sd.journal("job"))
            subject.fake_sd.set(die={"signal": "SIGKILL"})
            with pytest.raises(ServerError) as caught:
                await work
            assert "SIGKILL" in str(caught.value)
            await self.works_again(subject)

        subject.run(scenario())

    def test_a_file_that_is_no_model(self, subject: Subject) -> None:
        async def scenario() -> None:
            subject.image_file.write_bytes(b"<html>not found</html>")
            await subject.start_images()
            await subject.paint()

        with pytest.raises(GenaiNotebookError):  # at the start or at the first image
            subject.run(scenario(), limit=30)


class TestStandAlonePort:
    def test_the_routes_of_existing_clients(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_images()
            health = await request("GET", f"{info.url}/health", info.api_key)
            assert health.json() == {"status": "ok", "busy": False}
            body = {"prompt": "x", "width": 64, "height": 64, "steps": 2, "cfgScale": 1, "seed": 3}
            url = f"{info.url}/v1/images/generations"
            created = await request("POST", url, info.api_key, json=body)
            assert created.status_code == 201
            assert set(created.json()) == {"id", "status", "createdAt"}
            assert created.json()["status"] == "pending"

            async def finished() -> Any:
                state = (await request("GET", f"{url}/{created.json()['id']}", info.api_key)).json()
                return state if state["status"] == "complete" else None

            state = await until(finished)
            assert state["result"]["images"][0]["seed"] == 3
            assert state["result"]["format"] == "png"

        subject.run(scenario())

    def test_the_key_is_enforced(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_images()
            url = f"{info.url}/v1/images/generations"
            for key in (None, "wrong"):
                reply = await request("POST", url, key, json={"prompt": "x"})
                assert reply.status_code in (401, 403)
                assert reply.json()["error"]["code"]
            assert subject.fake_sd.journal("job") == []

        subject.run(scenario())

    def test_other_hosts_and_origins_are_refused(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_images(api_key=False)
            url = f"{info.url}/v1/images/generations"
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                body = {"prompt": "x"}
                evil = await client.post(url, json=body, headers={"Origin": "https://evil.example"})
                assert evil.status_code == 403
                rebound = await client.post(url, json=body, headers={"Host": f"evil.example:{info.port}"})
                assert rebound.status_code == 403
                assert "access-control-allow-origin" not in evil.headers
                plain = await client.post(url, content=b'{"prompt":"x"}', headers={"Content-Type": "text/plain"})
                assert plain.status_code in (400, 403, 415)
            assert subject.fake_sd.journal("job") == []

        subject.run(scenario())

    def test_no_key(self, subject: Subject) -> None:
        async def scenario() -> None:
            info = await subject.start_images(api_key=False)
            assert info.api_key is None
            assert (await request("GET", f"{info.url}/health")).json()["status"] == "ok"

        subject.run(scenario())

    def test_under_jupyter_no_port_is_opened_unless_asked(self, subject: Subject) -> None:
        if subject.kind == "local":
            return  # elsewhere the default is 8081, which may be anybody's here

        async def scenario() -> None:
            info = await subject.start_images(port=None)
            assert (info.port, info.api_key) == (None, None)
            assert info.url.endswith("/genai")
            assert (await subject.paint()).image

        subject.run(scenario())
