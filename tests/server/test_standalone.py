"""The image port of its own: who gets in, and that it speaks the reference's JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings
from genai_notebook.errors import PortInUseError
from genai_notebook.server.replies import MAX_BODY
from genai_notebook.server.standalone import listen
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion
from tests.processes import assert_none_left
from tests.server.helpers import until

REQUEST = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}


class Port:
    def __init__(self, runtime: Runtime, info: Any, client: httpx.AsyncClient) -> None:
        self.runtime, self.info, self.client = runtime, info, client


@pytest.fixture
def port(tmp_path: Path) -> Any:
    """`async with port(api_key=…) as it`: image generation on a port of its own, and a client without a key."""
    fake = FakeEngine(tmp_path / "fakes", "sd")

    @asynccontextmanager
    async def port(**options: Any) -> AsyncIterator[Port]:
        runtime = Runtime(Settings(home=tmp_path / "home", sd_server=fake.path), listen=listen)
        await runtime.open()
        file = tiny_diffusion(tmp_path / "files" / "picture.gguf")
        model = await runtime.model_manager.register_model(path=str(file), type="diffusion")
        try:
            info = await runtime.diffusion_server.start(**{"model_id": model.id, "port": "auto", **options})
            async with httpx.AsyncClient(base_url=info.url, trust_env=False, timeout=30) as client:
                yield Port(runtime, info, client)
        finally:
            await runtime.close()

    yield port
    assert_none_left(tmp_path)


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_client_of_the_reference(port: Any) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            assert it.info.api_key is None
            assert (await it.client.get("/health")).json() == {"status": "ok", "busy": False}
            accepted = await it.client.post("/v1/images/generations", json=REQUEST)
            assert accepted.status_code == 201
            assert set(accepted.json()) == {"id", "status", "createdAt"}
            path = f"/v1/images/generations/{accepted.json()['id']}"

            async def complete() -> Any:
                state = (await it.client.get(path)).json()
                assert set(state) <= {"id", "status", "createdAt", "updatedAt", "progress", "result"}
                return state if state["status"] == "complete" else None

            state = await until(complete)
            assert set(state["result"]["images"][0]) == {"image", "seed", "width", "height"}
            again = await it.client.delete(path)
            assert (again.status_code, error_of(again)["code"]) == (409, "ALREADY_TERMINAL")
            missing = await it.client.get("/v1/images/generations/nothere")
            assert (missing.status_code, error_of(missing)["code"]) == (404, "NOT_FOUND")

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/images/generations/x"),
        ("DELETE", "/v1/images/generations/x"),
        ("GET", "/nowhere"),
        ("OPTIONS", "/v1/images/generations"),
        ("PUT", "/health"),
    ],
)
def test_nobody_gets_in_without_the_key(port: Any, method: str, path: str) -> None:
    async def scenario() -> None:
        async with port() as it:
            key = it.info.api_key
            assert len(key) >= 20
            wrong = ["", "Bearer", "Bearer wrong", f"Bearer {key}x", f"Bearer {key[:-1]}", f"token {key}", "Bearer ü"]
            for value in wrong:
                answer = await it.client.request(method, path, headers={"Authorization": value.encode()})
                assert answer.status_code == 401, value
                assert error_of(answer)["code"] == "UNAUTHORIZED"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert (await it.client.request(method, path)).status_code == 401
            headers = {"Authorization": f"Bearer {key}"}
            assert (await it.client.request(method, path, headers=headers)).status_code != 401

    run(scenario)


def test_other_web_pages_are_refused(port: Any) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            local = f"http://127.0.0.1:{it.info.port}"
            for headers in (
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
                {"Origin": "http://localhost:1"},
                {"Origin": local.replace("http", "https")},
                {"Origin": local + ".evil.example"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
                {"Host": "evil.example"},
                {"Host": f"evil.example:{it.info.port}"},
                {"Host": "127.0.0.1"},
                {"Host": "127.0.0.1:1"},
            ):
                for method, path in (("GET", "/health"), ("POST", "/v1/images/generations"), ("OPTIONS", "/health")):
                    body = {"json": REQUEST} if method == "POST" else {}
                    answer = await it.client.request(method, path, headers=headers, **body)
                    assert (answer.status_code, error_of(answer)["code"]) == (403, "FORBIDDEN"), headers
            for headers in ({"Origin": local}, {"Host": f"LOCALHOST:{it.info.port}"}, {"Sec-Fetch-Site": "none"}):
                answer = await it.client.get("/health", headers=headers)
                assert answer.status_code == 200, headers
                assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
            assert it.runtime.diffusion_server.get_info().busy is False

    run(scenario)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_taken(port: Any, content_type: str) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            headers = {"Content-Type": content_type}
            answer = await it.client.post("/v1/images/generations", content=json.dumps(REQUEST), headers=headers)
            assert answer.status_code == 415
            assert error_of(answer)["code"] == "INVALID_REQUEST"

    run(scenario)


def test_bad_bodies(port: Any) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            headers = {"Content-Type": "application/json; charset=utf-8"}
            for body, status in (
                (b"[]", 400),
                (b"nonsense", 400),
                (b"\xff\xfe", 400),
                (b"{}", 400),
                (b'{"prompt": "x", "cookie": 1}', 400),
                (b'{"prompt": "x", "count": 6}', 400),
                (b"x" * (MAX_BODY + 1), 413),
            ):
                answer = await it.client.post("/v1/images/generations", content=body, headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (status, "INVALID_REQUEST"), body[:40]
            answer = await it.client.post("/v1/images/generations?queue=maybe", json=REQUEST)
            assert answer.status_code == 400

    run(scenario)


def test_contradicting_lengths_are_refused(port: Any) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.info.port)
            writer.write(
                f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{it.info.port}\r\n".encode()
                + b"Content-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
            writer.close()

    run(scenario)


def test_two_hosts_and_no_host_are_refused(port: Any) -> None:
    async def scenario() -> None:
        async with port(api_key=False) as it:
            host = f"Host: 127.0.0.1:{it.info.port}\r\n"
            for lines in (host + "Host: evil.example\r\n", ""):
                reader, writer = await asyncio.open_connection("127.0.0.1", it.info.port)
                writer.write(f"GET /health HTTP/1.0\r\n{lines}\r\n".encode())
                status = await asyncio.wait_for(reader.readline(), 10)
                assert b" 403 " in status or b" 400 " in status, (lines, status)
                writer.close()

    run(scenario)


def test_it_listens_on_the_loopback_interface_only(port: Any) -> None:
    async def scenario() -> None:
        async with port() as it:
            others = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
            for address in others - {"127.0.0.1"}:
                with socket.socket() as probe:
                    assert probe.connect_ex((address, it.info.port)) != 0, address

    run(scenario)


def test_stop_closes_the_port_and_a_restart_keeps_it(port: Any) -> None:
    async def scenario() -> None:
        async with port() as it:
            again = await it.runtime.diffusion_server.restart()
            assert (again.port, again.api_key) == (it.info.port, it.info.api_key)
            await it.runtime.diffusion_server.stop()
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", it.info.port)) != 0

    run(scenario)


def test_a_taken_port_is_named(port: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen(1)
            with pytest.raises(PortInUseError) as caught:
                await listen(None, other.getsockname()[1], None)  # type: ignore[arg-type]
            assert "pid" in (caught.value.holder or "")

    run(scenario)
