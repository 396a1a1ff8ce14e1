"""A notebook server and its kernels: who survives whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.fakes import eventually
from tests.fakes.file_server import file_server
from tests.fakes.gguf_files import write_gguf
from tests.faults.conftest import Scene, gone, guard_of
from tests.jupyter import JupyterServer
from tests.models import LLM_ID, home_with_models
from tests.notebook.kernels import Kernel, kernel
from tests.processes import alive, assert_none_left

START = {"modelId": "tiny-llm", "port": "auto"}


@contextmanager
def kernel_of(server: JupyterServer) -> Iterator[tuple[str, Kernel]]:
    """A kernel that the notebook server has started, and our own connection to it."""
    id = server.request("POST", "api/kernels", {"name": "python3"})["id"]
    file = Path(server.environ["JUPYTER_RUNTIME_DIR"]) / f"kernel-{id}.json"
    eventually(file.exists, "the connection file", 60)
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield id, Kernel(None, client)
    finally:
        client.stop_channels()


def kernel_pid(one: Kernel) -> int:
    return int(one.value("__import__('os').getpid()"))


def test_sigkill_of_jupyter_leaves_no_engine(scene: Scene) -> None:
    server = scene.jupyter()
    info = server.request("POST", "genai/llama/start", START)
    server.request("POST", "genai/diffusion/start", {"modelId": "tiny-picture"})
    scene.sd.set(step_seconds=0.2)
    server.request("POST", "genai/v1/images/generations", {"prompt": "x", "width": 64, "height": 64})
    eventually(lambda: scene.sd.journal("job"))
    guards = [guard_of(info["pid"]).pid, guard_of(scene.sd.pid).pid]
    server.kill()
    gone(info["pid"], scene.sd.pid, *guards)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_jupyter_that_is_told_to_end_does(scene: Scene, number: str) -> None:
    server = scene.jupyter()
    info = server.request("POST", "genai/llama/start", START)
    server.process.send_signal(getattr(signal, number))
    server.process.wait(30)
    gone(info["pid"])


def test_shutdown_in_the_middle_of_an_image(scene: Scene) -> None:
    scene.sd.set(hang_job=True)
    server = scene.jupyter()
    server.request("POST", "genai/diffusion/start", {"modelId": "tiny-picture"})
    server.request("POST", "genai/v1/images/generations", {"prompt": "x", "width": 64, "height": 64})
    eventually(lambda: scene.sd.journal("job"))
    server.request("POST", "api/shutdown")
    server.process.wait(30)
    gone(scene.sd.pid)


def test_two_kernels_share_one_llm_which_outlives_them(scene: Scene) -> None:
    with scene.jupyter() as server, kernel_of(server) as (first_id, first), kernel_of(server) as (second_id, second):
        for one in (first, second):
            one.ok("from genai_notebook import llama_server")
        first.ok("info = await llama_server.start(model_id='tiny-llm', port='auto')")
        pid = int(first.value("info.pid"))
        assert int(second.value("llama_server.get_info().pid")) == pid
        assert second.value("llama_server.get_info().owner") == "'jupyter-server'"
        assert second.value("llama_server.get_info().api_key") == first.value("info.api_key")
        server.request("POST", f"api/kernels/{first_id}/restart")
        assert alive(pid)
        os.kill(kernel_pid(second), signal.SIGKILL)
        server.request("GET", f"api/kernels/{second_id}")
        assert alive(pid)
        for id in (first_id, second_id):
            server.request("DELETE", f"api/kernels/{id}")
        assert alive(pid)
        assert len(scene.llama.starts) == 1
    gone(pid)


def test_sigkill_of_a_kernel_that_owns_its_engines(scene: Scene) -> None:
    with kernel(scene.folder / "kernel", scene.settings.home, **scene.environ) as one:
        one.ok("from genai_notebook import llama_server")
        one.ok("info = await llama_server.start(model_id='tiny-llm', port='auto')")
        assert one.value("info.owner") == "'kernel'"
        engine = int(one.value("info.pid"))
        guard = guard_of(engine).pid
        os.kill(kernel_pid(one), signal.SIGKILL)
        gone(engine, guard)


def test_an_interrupt_reaches_the_cell_but_not_the_engine(scene: Scene) -> None:
    with kernel(scene.folder / "kernel", scene.settings.home, **scene.environ) as one:
        one.ok("from genai_notebook import llama_server")
        one.ok("info = await llama_server.start(model_id='tiny-llm', port='auto')")
        engine = int(one.value("info.pid"))
        result = one.run(
            "print('going', flush=True); import time; time.sleep(60)",
            when=lambda so_far: "going" in so_far.stdout,
            then=one.interrupt,
        )
        assert result.status == "error"
        assert alive(engine)
        assert one.value("llama_server.get_status()") == "'running'"


def test_an_interrupted_start_leaves_nothing(scene: Scene) -> None:
    scene.llama.set(load_seconds=300)
    with kernel(scene.folder / "kernel", scene.settings.home, **scene.environ) as one:
        one.ok("%load_ext genai_notebook")

        def interrupt() -> None:
            eventually(lambda: scene.llama.starts)
            one.interrupt()

        result = one.run("print('going', flush=True)\n%genai start tiny-llm --port auto", when=_going, then=interrupt)
        assert result.status == "error"
        gone(scene.llama.pid)
        scene.llama.set(load_seconds=None)
        one.ok("%genai start tiny-llm --port auto")


def _going(so_far: Any) -> bool:
    return "going" in so_far.stdout


@pytest.mark.engines
def test_sigkill_of_jupyter_with_a_real_llm(tmp_path: Path) -> None:
    home = home_with_models(tmp_path, image=False)
    server = JupyterServer(tmp_path / "jupyter", {"GENAI_NOTEBOOK_HOME": str(home.settings.home)})
    info = server.request("POST", "genai/llama/start", {"modelId": LLM_ID, "port": "auto", "contextSize": 512})
    engine = psutil.Process(info["pid"])
    guard = guard_of(engine.pid).pid
    assert engine.is_running()
    server.kill()
    gone(engine.pid, guard)
    assert_none_left(tmp_path)


def test_a_download_survives_the_kernel_that_asked_for_it(scene: Scene) -> None:
    data = write_gguf(scene.folder / "x.gguf", {"general.architecture": "llama", "llama.block_count": 1}).read_bytes()
    with file_server() as files, scene.jupyter() as server:

        def slowly(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[:64])
            handler.wfile.flush()
            files.hold.wait(60)
            handler.wfile.write(data[64:])

        files.routes["/late.gguf"] = slowly
        with kernel_of(server) as (id, one):
            one.ok("%load_ext genai_notebook")
            pid = kernel_pid(one)
            one.client.execute(f"%genai download {files.url}/late.gguf")
            eventually(lambda: [job["status"] for job in downloads(server)] == ["running"])
            os.kill(pid, signal.SIGKILL)
            gone(pid)
            assert [job["status"] for job in downloads(server)] == ["running"]
            files.hold.set()
            eventually(lambda: [job["status"] for job in downloads(server)] == ["complete"])
            server.request("DELETE", f"api/kernels/{id}")
        assert "late" in [model["id"] for model in server.request("GET", "genai/models")["models"]]


def downloads(server: JupyterServer) -> list[dict[str, Any]]:
    return list(server.request("GET", "genai/downloads")["downloads"])
