"""The LLM's own API through Jupyter: what passes, what does not, and who may not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from genai_notebook.core.schema import SavedLLMState
from genai_notebook.errors import InvalidRequestError
from genai_notebook.server import proxy
from genai_notebook.server.extension import GenaiNotebookApp
from genai_notebook.server.proxy import request_headers, response_headers, upstream_path
from tests.fakes import FakeEngine
from tests.server.conftest import Call, Models
from tests.server.helpers import until

CHAT = {"messages": [{"role": "user", "content": "capital of France?"}]}


async def start(call: Call, models: Models, path: str = "llama") -> Any:
    answer = await call("POST", f"{path}/start", {"modelId": models.llm, "port": "auto"})
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_chat(call: Call, models: Models) -> None:
    await start(call, models)
    answer = await call("POST", "llama/v1/chat/completions", CHAT)
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == "Paris."
    assert answer.headers["Content-Type"] == "application/json"
    assert (await call("GET", "llama/v1/models")).json["data"][0]["id"] == models.llm


async def test_the_engines_own_errors_pass(call: Call, models: Models) -> None:
    await start(call, models)
    assert (await call("POST", "llama/v1/chat/completions", {"messages": 5})).status == 400
    assert (await call("GET", "llama/v1/nowhere")).status == 404


async def test_nothing_runs(call: Call) -> None:
    for path in ("llama/v1/models", "llamas/second/v1/models"):
        answer = await call("GET", path)
        assert (answer.status, answer.error["code"]) == (503, "SERVER_NOT_RUNNING")
        assert answer.error["hint"]


async def test_further_llms(call: Call, models: Models) -> None:
    await start(call, models, "llamas/second")
    assert (await call("GET", "llamas/second/v1/models")).status == 200
    assert (await call("GET", "llama/v1/models")).status == 503


async def test_a_request_waits_for_an_llm_that_is_starting(call: Call, models: Models, fake_llama: FakeEngine) -> None:
    fake_llama.set(load_seconds=0.5)
    starting = asyncio.ensure_future(start(call, models))
    await until(lambda: fake_llama.starts)
    answer = await call("POST", "llama/v1/chat/completions", CHAT)
    assert answer.status == 200
    await starting


async def test_a_request_waits_for_an_llm_that_stepped_aside(
    call: Call, models: Models, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(call, models)
    await call("POST", "llama/stop")
    saved = SavedLLMState(config={}, was_running=True, saved_at=1)
    orchestrator = extension.runtime.orchestrator
    monkeypatch.setattr(orchestrator, "_saved", saved)
    monkeypatch.setattr(orchestrator, "_wishes_then", extension.runtime.llama_server.wishes)
    asking = asyncio.ensure_future(call("POST", "llama/v1/chat/completions", CHAT))
    await asyncio.sleep(0.3)
    assert not asking.done()
    await extension.runtime.llama_server.resume()
    monkeypatch.setattr(orchestrator, "_saved", None)
    assert (await asking).status == 200
    # From the moment it is to step aside, nothing new reaches it, although it still runs.
    monkeypatch.setattr(orchestrator, "_saved", saved)
    monkeypatch.setattr(proxy, "RELOAD_WAIT", 0.2)
    late = await call("GET", "llama/v1/models")
    assert (late.status, late.error["code"]) == (503, "SERVER_NOT_RUNNING")
    assert int(late.headers["Retry-After"]) > 0
    failed = SavedLLMState(config={}, was_running=True, saved_at=1, error="it does not come back")
    monkeypatch.setattr(orchestrator, "_saved", failed)
    assert "Retry-After" not in (await call("GET", "llama/v1/models")).headers


async def test_words_pass_as_they_come(
    call: Call,
    models: Models,
    fake_llama: FakeEngine,
    http_server_client: Any,
    jp_auth_header: dict[str, str],
    jp_base_url: str,
) -> None:
    await start(call, models)
    fake_llama.set(reply="one two three", token_seconds=0.2)
    url = http_server_client.get_url(f"{jp_base_url}genai/llama/v1/chat/completions")
    pieces: list[str] = []
    async with (
        httpx.AsyncClient(trust_env=False, headers=jp_auth_header, timeout=30) as client,
        client.stream("POST", url, json={**CHAT, "stream": True}) as response,
    ):
        assert response.headers["Content-Type"] == "text/event-stream"
        async for chunk in response.aiter_raw():
            pieces.append(chunk.decode())
    words = [piece for piece in pieces if '"content": ' in piece]
    assert len(words) >= 3, "the answer came in one piece"
    assert "".join(pieces).rstrip().endswith("[DONE]")


async def test_a_caller_that_leaves_ends_the_engines_work(
    call: Call,
    models: Models,
    fake_llama: FakeEngine,
    http_server_client: Any,
    jp_auth_header: dict[str, str],
    jp_base_url: str,
) -> None:
    await start(call, models)
    fake_llama.set(reply="word " * 500, token_seconds=0.02)
    url = http_server_client.get_url(f"{jp_base_url}genai/llama/v1/chat/completions")
    async with (
        httpx.AsyncClient(trust_env=False, headers=jp_auth_header, timeout=30) as client,
        client.stream("POST", url, json={**CHAT, "stream": True}) as response,
    ):
        async for _ in response.aiter_raw():
            break
    await until(lambda: fake_llama.journal("stream-cut"), "the engine to notice")


async def test_an_engine_that_dies_in_the_middle_is_no_whole_answer(
    call: Call,
    models: Models,
    fake_llama: FakeEngine,
    http_server_client: Any,
    jp_auth_header: dict[str, str],
    jp_base_url: str,
) -> None:
    await start(call, models)
    fake_llama.set(reply="word " * 500, token_seconds=0.05)
    url = http_server_client.get_url(f"{jp_base_url}genai/llama/v1/chat/completions")

    async def read_on() -> None:
        async with (
            httpx.AsyncClient(trust_env=False, headers=jp_auth_header, timeout=30) as client,
            client.stream("POST", url, json={**CHAT, "stream": True}) as response,
        ):
            async for _ in response.aiter_raw():
                fake_llama.set(die={"signal": "SIGKILL"})

    with pytest.raises(httpx.RemoteProtocolError):
        await read_on()


@pytest.mark.parametrize(
    "path",
    [
        "llama/v1/../props",
        "llama/v1/..%2fprops",
        "llama/v1/%2e%2e/props",
        "llama/v1/%252e%252e/props",
        "llama/v1/..%5cprops",
        "llama/v1//evil.example/x",
        "llama/v1/a%2fb",
        "llama/v1/a%00b",
        "llama/v1/./models",
    ],
)
async def test_nobody_climbs_out(call: Call, models: Models, fake_llama: FakeEngine, path: str) -> None:
    await start(call, models)
    before = len(fake_llama.journal("request"))
    answer = await call("GET", path)
    assert answer.status in (400, 404), answer.body
    asked = [entry["path"] for entry in fake_llama.journal("request")[before:]]
    assert [path for path in asked if path != "/health"] == []


async def test_jupyters_token_stays_and_the_engines_key_goes(
    call: Call, models: Models, jp_serverapp: Any, fake_llama: FakeEngine
) -> None:
    await start(call, models)
    token = jp_serverapp.identity_provider.token
    # The fake refuses every key but its own: that the request passes shows whose key it carried.
    answer = await call("POST", f"llama/v1/chat/completions?token={token}", CHAT, token=False)
    assert answer.status == 200
    assert token not in json.dumps(fake_llama.journal())


def test_request_headers() -> None:
    given = httpx.Headers(
        {
            "Authorization": "token jupyter",
            "Cookie": "username=1",
            "X-XSRFToken": "x",
            "Host": "localhost:8888",
            "Origin": "https://evil.example",
            "Referer": "https://evil.example/",
            "Connection": "keep-alive, X-Secret",
            "X-Secret": "1",
            "Transfer-Encoding": "chunked",
            "Content-Length": "3",
            "Upgrade": "h2c",
            "TE": "trailers",
            "X-Forwarded-For": "1.2.3.4",
            "Sec-Fetch-Site": "cross-site",
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
        }
    )
    kept = {name.lower(): value for name, value in request_headers(given, "key").items()}
    assert kept == {"content-type": "application/json", "accept": "text/event-stream", "authorization": "Bearer key"}
    assert "Authorization" not in request_headers(given, None)


def test_response_headers() -> None:
    given = httpx.Headers(
        {
            "Content-Type": "text/event-stream",
            "Access-Control-Allow-Origin": "*",
            "Set-Cookie": "a=b",
            "Server": "llama.cpp",
            "Connection": "close",
            "Transfer-Encoding": "chunked",
            "X-Request-Id": "1",
        }
    )
    assert {name.lower(): value for name, value in response_headers(given)} == {
        "content-type": "text/event-stream",
        "x-request-id": "1",
    }


def test_upstream_path_keeps_what_was_written() -> None:
    assert upstream_path("/a%40b/genai/llama/v1/models/a%20b", "/a%40b/") == "/v1/models/a%20b"
    assert upstream_path("/genai/llamas/v1/v1/models", "/") == "/v1/models"
    assert upstream_path("/v1/genai/llama/v1/x/genai/llama/v1/y", "/v1/") == "/v1/x/genai/llama/v1/y"
    for bad in ("/genai/llama/v1/..", "/genai/llama/v1/a/%2E%2e/b", "/genai/llama/v1/a%5Cb"):
        with pytest.raises(InvalidRequestError):
            upstream_path(bad, "/")
