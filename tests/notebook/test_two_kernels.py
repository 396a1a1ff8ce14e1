"""Two notebooks of one Jupyter server share one running model; a kernel's restart or death unloads nothing."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.fakes import eventually
from tests.models import home_with_models
from tests.notebook.kernels import Kernel, environment
from tests.processes import alive, free_port

pytestmark = pytest.mark.engines
CHAT = "%%genai_chat --system 'You answer questions correctly and briefly.' --temperature 0"
QUESTION = f"{CHAT}\nWhat is the capital of France?"


class JupyterServer:
    """A real `jupyter server` process with the extension, reached over HTTP."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.port, self.token = free_port(), secrets.token_hex(16)
        command = [
            *(sys.executable, "-m", "jupyter", "server", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}"),
            *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", "--allow-root"),
            f"--IdentityProvider.token={self.token}",
        ]
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(folder, home), cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self.ask("api/status")
        except (urllib.error.URLError, OSError):
            return False
        return True

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return json.loads(reply.read() or b"null")

    @contextmanager
    def kernel(self) -> Iterator[tuple[str, Kernel]]:
        """A kernel that the server starts, as it does for a notebook."""
        id = self.ask("api/kernels", "POST", {"name": "python3"})["id"]
        with self.client(id) as kernel:
            kernel.ok("%load_ext genai_notebook")
            yield id, kernel

    @contextmanager
    def client(self, id: str) -> Iterator[Kernel]:
        client = BlockingKernelClient(connection_file=str(self.folder / "runtime" / f"kernel-{id}.json"))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield Kernel(None, client)
        finally:
            client.stop_channels()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path, no_process_left: None) -> Iterator[JupyterServer]:
    started = JupyterServer(tmp_path / "server", home_with_models(tmp_path, image=False).settings.home)
    yield started
    started.stop()


def engine_pid(kernel: Kernel) -> int:
    kernel.ok("from genai_notebook import llama_server")
    return int(kernel.value("llama_server.get_info().pid"))


def test_two_notebooks_share_one_model(server: JupyterServer):
    with server.kernel() as (first_id, first), server.kernel() as (_, second):
        first.ok("%genai start --port auto")
        pid = engine_pid(first)
        eventually(lambda: "running" in second.ok("%genai status").text, "the model in the other notebook")
        assert engine_pid(second) == pid
        for kernel in (first, second):
            assert "Paris" in kernel.ok(QUESTION).text
        status = second.ok("%genai status").text
        assert "the Jupyter server" in status
        assert "is running already" in second.ok("%genai start").text

        server.ask(f"api/kernels/{first_id}/restart", "POST")
        assert alive(pid)
        with server.client(first_id) as again:
            again.ok("%load_ext genai_notebook")
            assert engine_pid(again) == pid
            assert "Paris" in again.ok(QUESTION).text

        second.ok("%genai stop")
        eventually(lambda: not alive(pid), "the end of the engine")
    # The fixture sees to it that the end of the server leaves nothing.


def test_a_killed_kernel_leaves_the_model_to_the_others(server: JupyterServer):
    with server.kernel() as (_, first), server.kernel() as (_, second):
        first.ok("%genai start --port auto")
        pid = engine_pid(first)
        os.kill(int(first.value("__import__('os').getpid()")), signal.SIGKILL)
        time.sleep(0.5)
        assert alive(pid)
        assert "Paris" in second.ok(QUESTION).text


def test_a_killed_server_takes_the_engine_with_it(server: JupyterServer):
    with server.kernel() as (_, kernel):
        kernel.ok("%genai start --port auto")
        pid = engine_pid(kernel)
        kernel_process = int(kernel.value("__import__('os').getpid()"))
        server.process.kill()
        server.process.wait(10)
        eventually(lambda: not alive(pid), "the end of the engine")
        eventually(lambda: not alive(kernel_process), "the kernel's end", 30)
