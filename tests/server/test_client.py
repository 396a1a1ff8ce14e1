"""What only the client has: a connection that can break, a cache that must not lie, sockets, two notebooks at once."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from genai_notebook.client.remote import RemoteRuntime
from genai_notebook.client.transport import Connection, is_loopback, reported_error, segment
from genai_notebook.errors import DownloadError, InvalidRequestError, ModelNotFoundError, PortInUseError, ServerError
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.jupyter import TOKEN, JupyterServer, jupyter_environment
from tests.processes import assert_none_left, free_port
from tests.server.helpers import until


class World:
    """A notebook server with fake engines and two models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llama, self.sd = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        paths = {"LLAMA_SERVER": self.llama.path, "SD_SERVER": self.sd.path, "HOME": folder / "home"}
        self.environ = {f"GENAI_NOTEBOOK_{name}": str(path) for name, path in paths.items()}
        self.server = JupyterServer(folder / "jupyter", self.environ)
        llm, image = tiny_llm(folder / "files" / "tiny.gguf"), tiny_diffusion(folder / "files" / "picture.gguf")
        self.server.request("POST", "genai/models/register", {"path": str(llm)})
        self.server.request("POST", "genai/models/register", {"path": str(image), "type": "diffusion"})


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("client"))
    yield world
    world.server.stop()
    assert_none_left(world.folder)


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    yield _world
    _world.llama.reset()
    _world.sd.reset()
    for name in ("llama", "diffusion"):
        _world.server.request("POST", f"genai/{name}/stop")


@asynccontextmanager
async def client(url: str, token: str | None = TOKEN) -> AsyncIterator[RemoteRuntime]:
    runtime = RemoteRuntime(url, token)
    try:
        await runtime.open()
        yield runtime
    finally:
        await runtime.close()


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


class Relay:
    """A TCP relay to a server, which can be cut and mended: a network between the kernel and its server."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()
        self.port = free_port()

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self.server
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        self.server = None

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers |= {writer, other_writer}
        await asyncio.wait(
            [asyncio.ensure_future(_pump(reader, other_writer)), asyncio.ensure_future(_pump(other_reader, writer))]
        )
        self.writers -= {writer, other_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


class TestReads:
    def test_reading_a_state_asks_nobody_while_events_arrive(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                info = await runtime.llama_server.start(model_id="tiny", port="auto")
                await until(lambda: runtime._live._position >= runtime._connection.heard)

                def no_request(*_: Any, **__: Any) -> Any:
                    raise AssertionError("a request was made")

                monkeypatch.setattr(Connection, "request_now", no_request)
                assert runtime.llama_server.get_info() == info
                assert runtime.llama_server.get_status() == "running"
                assert runtime.diffusion_server.get_status() == "stopped"
                assert runtime.model_manager.list_downloads() == []

        run(scenario)

    def test_own_writes_are_read_at_once(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                for _ in range(3):
                    info = await runtime.llama_server.start(model_id="tiny", port="auto")
                    assert runtime.llama_server.get_info() == info
                    await runtime.llama_server.stop()
                    assert runtime.llama_server.get_status() == "stopped"
                    assert runtime.llama_server.get_info().api_key is None

        run(scenario)

    def test_another_kernels_writes_arrive(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as one, client(world.server.url) as other:
                started: list[Any] = []
                other.llama_server.on("started", started.append)
                info = await one.llama_server.start(model_id="tiny", port="auto")
                await until(lambda: other.llama_server.get_status() == "running")
                # The key is not in the events: it is asked for.
                assert other.llama_server.get_info() == info
                await until(lambda: started)
                assert started == [info]
                with pytest.raises(ServerError) as caught:
                    await other.llama_server.start(model_id="tiny", port="auto")
                assert caught.value.code == "ALREADY_RUNNING"
            async with client(world.server.url) as third:
                assert third.llama_server.get_info() == info, "a closed client took the LLM with it"

        run(scenario)


class TestLostServer:
    def test_a_broken_line_is_mended(self, world: World) -> None:
        async def scenario() -> None:
            relay = Relay(world.server.port)
            await relay.open()
            async with client(f"http://127.0.0.1:{relay.port}/") as runtime, client(world.server.url) as other:
                started: list[Any] = []
                runtime.llama_server.on("started", started.append)
                await relay.cut()
                await until(lambda: not runtime._live.connected)
                with pytest.raises(ServerError) as caught:
                    runtime.llama_server.get_status()
                assert caught.value.code == "SERVER_UNREACHABLE"
                info = await other.llama_server.start(model_id="tiny", port="auto")
                await relay.open()
                await until(lambda: runtime._live.connected)
                assert runtime.llama_server.get_status() == "running"
                await until(lambda: started)
                assert started[0].pid == info.pid
                await relay.cut()

        run(scenario)

    def test_a_picture_survives_a_broken_event_stream(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                await runtime.diffusion_server.start(model_id="picture")
                await runtime._live.close()
                seen: list[Any] = []
                world.sd.set(step_seconds=0.1)
                image = await runtime.diffusion_server.generate_image(
                    prompt="x", width=64, height=64, steps=5, on_progress=lambda *step: seen.append(step)
                )
                assert image.image.startswith(b"\x89PNG")
                await until(lambda: len({step[0] for step in seen if step[2] == "diffusion"}) >= 2)

        run(scenario)

    def test_no_server(self) -> None:
        async def scenario() -> None:
            with pytest.raises(ServerError) as caught:
                async with client(f"http://127.0.0.1:{free_port()}/"):
                    pass
            assert caught.value.code == "SERVER_UNREACHABLE"
            assert caught.value.hint

        run(scenario)

    def test_a_wrong_token(self, world: World) -> None:
        async def scenario() -> None:
            for token in ("wrong", None):
                with pytest.raises(ServerError) as caught:
                    async with client(world.server.url, token):
                        pass
                assert caught.value.code == "FORBIDDEN"

        run(scenario)

    def test_a_server_that_is_something_else(self) -> None:
        class Other(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>hello</html>")

            def log_message(self, *_: Any) -> None:
                pass

        other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()

        async def scenario() -> None:
            with pytest.raises(ServerError):
                async with client(f"http://127.0.0.1:{other.server_address[1]}/"):
                    pass

        try:
            run(scenario)
        finally:
            other.shutdown()
            other.server_close()


class TestCancelling:
    def test_a_cancelled_picture_ends_on_the_server(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                await runtime.diffusion_server.start(model_id="picture")
                world.sd.set(hang_job=True)
                ids: list[str] = []
                work = asyncio.ensure_future(
                    runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, on_start=ids.append)
                )
                await until(lambda: ids and world.sd.journal("job"))
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
                state = runtime.diffusion_server.get_generation(ids[0])
                assert state
                assert state.error
                assert state.error.code == "GENERATION_CANCELLED"
                assert runtime.diffusion_server.get_info().busy is False

        run(scenario)

    def test_a_picture_cancelled_before_its_id_is_known(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                await runtime.diffusion_server.start(model_id="picture")
                world.sd.set(hang_job=True)
                work = asyncio.ensure_future(runtime.diffusion_server.generate_image(prompt="x", width=64, height=64))
                await asyncio.sleep(0)
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
                await until(lambda: runtime.diffusion_server.get_info().busy is False)

        run(scenario)

    def test_a_cancelled_start_takes_no_other_with_it(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime, client(world.server.url) as other:
                info = await other.llama_server.start(model_id="tiny", port="auto")
                work = asyncio.ensure_future(runtime.llama_server.start(model_id="tiny", port="auto"))
                await asyncio.sleep(0)
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
                assert other.llama_server.get_info() == info
                assert await other.llama_server.is_healthy()

        run(scenario)

    def test_one_download_with_two_waiting_notebooks(self, world: World) -> None:
        file = Slow()

        async def scenario() -> None:
            async with client(world.server.url) as one, client(world.server.url) as other:
                config = {"source": "url", "url": file.url, "name": "shared"}
                works = [
                    asyncio.ensure_future(runtime.model_manager.download_model(**config)) for runtime in (one, other)
                ]
                await until(lambda: len(world_waiters(world, one)) == 1 and file.asked)
                await asyncio.sleep(0.3)
                works[0].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await works[0]
                (job,) = [job for job in other.model_manager.list_downloads() if job.model_name == "shared"]
                assert job.status in ("queued", "running")
                assert not works[1].done()
                works[1].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await works[1]
                await until(lambda: other.model_manager.job_state(job.id).status == "cancelled")
                with pytest.raises(DownloadError):
                    await other.model_manager.wait_download(job.id)

        try:
            run(scenario)
        finally:
            file.close()


def world_waiters(world: World, runtime: RemoteRuntime) -> list[Any]:
    return [job for job in runtime.model_manager.list_downloads() if job.model_name == "shared"]


class Slow:
    """A GGUF that never ends, over HTTP."""

    def __init__(self) -> None:
        self.asked = 0
        self.closing = threading.Event()
        slow = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                slow.asked += 1
                self.answer()
                self.wfile.write(b"GGUF" + b"\3\0\0\0" + b"\0" * 1000)
                while not slow.closing.wait(0.05):
                    self.wfile.write(b"\0" * 100)

            def answer(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100000000")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/shared.gguf"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class TestErrors:
    def test_they_are_the_same_classes_with_the_same_attributes(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                with pytest.raises(ModelNotFoundError) as unknown:
                    await runtime.llama_server.start(model_id="nobody")
                assert unknown.value.model_id == "nobody"
                with socket.socket() as other:
                    other.bind(("127.0.0.1", 0))
                    other.listen(1)
                    port = other.getsockname()[1]
                    with pytest.raises(PortInUseError) as taken:
                        await runtime.llama_server.start(model_id="tiny", port=port)
                assert taken.value.port == port
                assert str(os.getpid()) in (taken.value.holder or "")
                with pytest.raises(InvalidRequestError):
                    await runtime.llama_server.start(model_id="tiny", bogus=1)

        run(scenario)

    def test_a_failed_picture_keeps_its_details(self, world: World) -> None:
        async def scenario() -> None:
            async with client(world.server.url) as runtime:
                await runtime.diffusion_server.start(model_id="picture")
                world.sd.set(fail_job="the GPU is on fire")
                with pytest.raises(ServerError) as caught:
                    await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64)
                assert "on fire" in str(caught.value)
                assert caught.value.details
                assert caught.value.hint

        run(scenario)

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b'{"error": 5}', b'{"message": 5}', b'{"error": {"code": 5}}']
    )
    def test_answers_that_are_not_ours(self, body: bytes) -> None:
        assert isinstance(reported_error(502, body), ServerError)
        assert reported_error(403, body).code == "FORBIDDEN" or body.startswith(b'{"error": {')


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    if len(str(path)) > 100:
        pytest.skip("the temporary folder's name is too long for a socket")
    (tmp_path / "root").mkdir()
    environ = jupyter_environment(tmp_path / "jupyter", GENAI_NOTEBOOK_HOME=str(tmp_path / "home"))
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.sock={path}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.jpserver_extensions", "genai_notebook=True"]
    command += [f"--ServerApp.root_dir={tmp_path / 'root'}", "--ServerApp.base_url=/deep/er/"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environ, cwd=Path(__file__).parents[2], stdout=log, stderr=log)

    async def scenario() -> None:
        async def answers() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                transport = httpx.AsyncHTTPTransport(uds=str(path))
                async with httpx.AsyncClient(transport=transport, trust_env=False) as probe:
                    return (await probe.get("http://localhost/deep/er/api")).status_code == 200
            except httpx.HTTPError:
                return False

        await until(answers, "the server", 40)
        async with client(f"http+unix://{quote(str(path), safe='')}/deep/er/") as runtime:
            assert runtime.owner == "jupyter-server"
            assert runtime.llama_server.get_status() == "stopped"
            assert runtime.system_info.get_memory_info().total > 0
            assert await runtime.model_manager.list_models() == []

    try:
        run(scenario)
    finally:
        server.terminate()
        server.wait(30)


def test_proxies_of_the_environment_are_not_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def scenario() -> None:
        async with client(world.server.url) as runtime:
            assert runtime.system_info.get_memory_info().total > 0

    run(scenario)


def test_which_hosts_are_this_machine() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        assert is_loopback(host), host
    for host in ("", "0.0.0.0", "localhost.evil.example", "10.0.0.1", "evil.example", "2130706433"):
        assert not is_loopback(host), host


def test_segments_of_paths() -> None:
    assert segment("a/b?c#d e%") == "a%2Fb%3Fc%23d%20e%25"
    assert segment("..") == "%2E%2E"
    assert segment(".") == "%2E"
    assert segment("..a") == "..a"
    assert segment("") == ""
