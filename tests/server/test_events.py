"""The event stream: a snapshot, then what happens; and no listener can hurt the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from genai_notebook.server import events
from genai_notebook.server.events import EventHub
from genai_notebook.server.extension import GenaiNotebookApp
from tests.fakes import FakeEngine
from tests.server.conftest import Call, Models
from tests.server.helpers import until

Stream = asyncio.Queue[tuple[str, Any, int]]


@pytest.fixture
def listen(
    extension: GenaiNotebookApp, http_server_client: Any, jp_auth_header: dict[str, str], jp_base_url: str
) -> Any:
    """`async with listen() as (response, events)`: a client on the stream."""

    @asynccontextmanager
    async def listen() -> AsyncIterator[tuple[httpx.Response, Stream]]:
        gathered: Stream = asyncio.Queue()
        url = http_server_client.get_url(f"{jp_base_url}genai/events")
        async with (
            httpx.AsyncClient(trust_env=False, headers=jp_auth_header, timeout=30) as client,
            client.stream("GET", url) as response,
        ):
            reading = asyncio.ensure_future(read(response, gathered))
            try:
                yield response, gathered
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    return listen


async def read(response: httpx.Response, into: Stream) -> None:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            into.put_nowait(("comment", line, 0))
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            into.put_nowait((fields["event"], json.loads(fields["data"]), int(fields["id"])))
            fields = {}
    into.put_nowait(("end", None, 0))


async def next_of(stream: Stream, name: str) -> tuple[Any, int]:
    while True:
        event, data, sequence = await asyncio.wait_for(stream.get(), 20)
        assert event != "end", f"the stream ended before {name}"
        if event == name:
            return data, sequence


async def test_a_snapshot_comes_first(listen: Any, call: Call, models: Models) -> None:
    await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
    async with listen() as (response, stream):
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        event, data, _ = await asyncio.wait_for(stream.get(), 20)
        assert event == "snapshot"
        assert data["servers"]["llama"]["status"] == "running"
        assert data["servers"]["diffusion"]["status"] == "stopped"
        assert data["downloads"] == []


async def test_what_happens_is_told_without_keys_and_prompts(
    listen: Any, call: Call, models: Models, extension: GenaiNotebookApp
) -> None:
    async with listen() as (_, stream):
        await next_of(stream, "snapshot")
        info = (await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})).json
        started, _ = await next_of(stream, "started")
        assert started == {"server": "llama"}
        await call("POST", "diffusion/start", {"modelId": models.image})
        request = {"prompt": "a secret garden", "width": 64, "height": 64, "steps": 2}
        id = (await call("POST", "v1/images/generations", request)).json["id"]
        told = ""
        while True:
            data, _ = await next_of(stream, "generation")
            assert data["id"] == id
            told += json.dumps(data)
            if data["status"] == "complete":
                break
        assert '"progress"' in told
        assert "garden" not in told
        await call("POST", "llama/stop")
        await next_of(stream, "stopped")
    snapshot = extension.events.snapshot()
    assert info["apiKey"].encode() not in snapshot


async def test_a_crash_is_told(listen: Any, call: Call, models: Models, fake_llama: FakeEngine) -> None:
    await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
    async with listen() as (_, stream):
        await next_of(stream, "snapshot")
        fake_llama.set(die={"exit": 3})
        data, _ = await next_of(stream, "crashed")
        assert data["server"] == "llama"
        assert data["error"]["details"]["exit_code"] == 3


async def test_numbers_rise_and_answers_carry_them(listen: Any, call: Call, models: Models) -> None:
    async with listen() as (_, stream):
        _, first = await next_of(stream, "snapshot")
        answer = await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
        numbers = []
        while True:
            event, _, sequence = await asyncio.wait_for(stream.get(), 20)
            numbers.append(sequence)
            if event == "started":
                break
        assert numbers == sorted(set(numbers))
        assert numbers[0] > first
        assert int(answer.headers["X-Genai-Sequence"]) == numbers[-1]


async def test_silence_is_broken_by_comments(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.05)
    async with listen() as (_, stream):
        await next_of(stream, "comment")
        await next_of(stream, "comment")


async def test_a_lost_client_is_forgotten(listen: Any, extension: GenaiNotebookApp) -> None:
    async with listen() as (_, stream):
        await next_of(stream, "snapshot")
        assert len(extension.events._streams) == 1
    await until(lambda: not extension.events._streams, "the end of the stream")


async def test_a_stopping_server_ends_its_streams(listen: Any, extension: GenaiNotebookApp) -> None:
    async with listen() as (_, stream):
        await next_of(stream, "snapshot")
        await extension.stop_extension()
        while (await asyncio.wait_for(stream.get(), 20))[0] != "end":
            pass


async def test_a_slow_reader_gets_a_snapshot_instead_of_a_backlog(extension: GenaiNotebookApp) -> None:
    hub: EventHub = extension.events
    stream = hub.open_stream()
    for number in range(5050):
        hub._publish("binary-log", {"server": "llama", "message": f"line {number}", "level": "info"})
    gathered = await stream.next(1)
    assert gathered.count(b"event: ") <= events._BACKLOG
    assert gathered.rindex(b"event: snapshot") > 0
    assert b"line 5049" in gathered
    hub.close_stream(stream)
