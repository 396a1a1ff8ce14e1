"""From `jupyter server extension list` to the end of the notebook server, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genai_notebook._version import __version__
from genai_notebook.server import extension as extension_module
from genai_notebook.server.extension import GenaiNotebookApp
from tests.fakes import FakeEngine, eventually
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.jupyter import JupyterServer, jupyter_environment
from tests.processes import alive, assert_none_left
from tests.server.conftest import Call, Models
from tests.server.helpers import until

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jupyter-config" / "genai_notebook.json"


# ---- the stop hook ----------------------------------------------------------------------------------------------


async def test_cleanup_ends_every_engine(
    call: Call, models: Models, jp_serverapp: Any, fake_llama: FakeEngine, fake_sd: FakeEngine
) -> None:
    await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
    await call("POST", "diffusion/start", {"modelId": models.image, "port": "auto"})
    fake_sd.set(hang_job=True)
    await call("POST", "v1/images/generations", {"prompt": "x", "width": 64, "height": 64})
    await until(lambda: fake_sd.journal("job"), "the job")
    await jp_serverapp.cleanup_extensions()
    assert not alive(fake_llama.pid)
    assert not alive(fake_sd.pid)
    await jp_serverapp.cleanup_extensions()  # a second SIGTERM


async def test_cleanup_twice_at_the_same_time(call: Call, models: Models, jp_serverapp: Any, fake_llama: Any) -> None:
    await call("POST", "llama/start", {"modelId": models.llm, "port": "auto"})
    await asyncio.gather(jp_serverapp.cleanup_extensions(), jp_serverapp.cleanup_extensions())
    assert not alive(fake_llama.pid)


async def test_an_error_while_stopping_does_not_get_out(
    extension: GenaiNotebookApp, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = extension.runtime.close

    async def broken() -> None:
        await real()
        raise RuntimeError("not today")

    monkeypatch.setattr(extension.runtime, "close", broken)
    await jp_serverapp.cleanup_extensions()


async def test_stopping_is_bounded(
    extension: GenaiNotebookApp, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless() -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(extension.runtime, "close", endless)
    monkeypatch.setattr(extension_module, "STOP_LIMIT", 0.1)
    await asyncio.wait_for(jp_serverapp.cleanup_extensions(), 20)


async def test_a_runtime_that_cannot_open_is_told_and_does_not_block(
    call: Call, extension: GenaiNotebookApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(extension.runtime, "open", broken)
    assert (await call("GET", "")).status == 200


# ---- a real notebook server -------------------------------------------------------------------------------------


def test_the_extension_is_listed_as_ok(tmp_path: Path) -> None:
    environ = jupyter_environment(tmp_path)
    folder = Path(environ["JUPYTER_CONFIG_DIR"]) / "jupyter_server_config.d"
    folder.mkdir(parents=True)
    (folder / CONFIG.name).write_bytes(CONFIG.read_bytes())
    command = [sys.executable, "-m", "jupyter", "server", "extension", "list"]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = re.sub(r"\x1b\[\d*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    assert re.search(r"genai_notebook\s+enabled", said), said
    assert re.search(rf"genai_notebook\s+{re.escape(__version__)}\s+OK", said), said


def test_the_shipped_configuration_names_the_package() -> None:
    assert json.loads(CONFIG.read_text()) == {"ServerApp": {"jpserver_extensions": {"genai_notebook": True}}}


class Started:
    """A notebook server in a process of its own, with both engines up."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.llama, self.sd = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        paths = {"LLAMA_SERVER": self.llama.path, "SD_SERVER": self.sd.path, "HOME": folder / "home"}
        ours = {f"GENAI_NOTEBOOK_{name}": str(path) for name, path in paths.items()}
        self.server = JupyterServer(folder / "jupyter", {**ours, **environ})
        llm, image = tiny_llm(folder / "files" / "tiny.gguf"), tiny_diffusion(folder / "files" / "picture.gguf")
        self.post("models/register", {"path": str(llm)})
        self.post("models/register", {"path": str(image), "type": "diffusion"})
        self.post("llama/start", {"modelId": "tiny", "port": "auto"})
        self.post("diffusion/start", {"modelId": "picture", "port": "auto"})
        self.sd.set(hang_job=True)
        self.post("v1/images/generations", {"prompt": "x", "width": 64, "height": 64})
        eventually(lambda: self.sd.journal("job"), "the job")

    def post(self, path: str, body: Any) -> Any:
        return self.server.request("POST", f"genai/{path}", body)


def terminate(server: JupyterServer) -> None:
    server.stop()


def terminate_twice(server: JupyterServer) -> None:
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)


def interrupt(server: JupyterServer) -> None:
    # Without a terminal this runs nothing but atexit.
    server.process.send_signal(signal.SIGINT)
    server.process.wait(30)


def hang_up(server: JupyterServer) -> None:
    server.process.send_signal(signal.SIGHUP)
    server.process.wait(30)


def shut_down(server: JupyterServer) -> None:
    server.request("POST", "api/shutdown")
    server.process.wait(30)


def kill(server: JupyterServer) -> None:
    server.kill()


@pytest.mark.parametrize("end", [terminate, terminate_twice, interrupt, hang_up, shut_down, kill])
def test_no_engine_outlives_the_notebook_server(tmp_path: Path, end: Callable[[JupyterServer], None]) -> None:
    started = Started(tmp_path)
    engines = [started.llama.pid, started.sd.pid]
    assert all(alive(pid) for pid in engines)
    try:
        end(started.server)
    finally:
        started.server.kill()
    eventually(lambda: not any(alive(pid) for pid in engines), "the end of the engines")
    assert_none_left(tmp_path)


def test_a_wrong_setting_does_not_keep_the_notebook_server_from_starting(tmp_path: Path) -> None:
    environ = {"GENAI_NOTEBOOK_HOME": str(tmp_path / "home"), "GENAI_NOTEBOOK_MEMORY_LIMIT": "plenty"}
    with JupyterServer(tmp_path / "jupyter", environ) as server:
        assert server.request("GET", "api/status")
        assert "GENAI_NOTEBOOK_MEMORY_LIMIT" in server.log.read_text()


def test_loading_is_no_burden(tmp_path: Path) -> None:
    # What is imported while every notebook server starts; engines, HTTP clients and hubs come with their first use.
    code = (
        "import sys, jupyter_server.serverapp\n"
        "before = set(sys.modules)\n"
        "import genai_notebook; genai_notebook._jupyter_server_extension_points()\n"
        "heavy = {'httpx', 'huggingface_hub', 'numpy', 'ipywidgets', 'IPython', 'gguf', 'pynvml'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
