"""%genai start, stop, restart, logs: what people see when it goes well, and when it does not."""

from __future__ import annotations

import socket

from tests.fakes import eventually
from tests.notebook.conftest import FakeKernel
from tests.processes import alive


def test_start_says_where_and_how_and_keeps_the_result(fake_kernel: FakeKernel):
    result = fake_kernel.ok("%genai start tiny-llm --port auto --context-size 1024 --threads 1 --into server")
    (output,) = result.outputs
    assert "tiny-llm is running" in output["data"]["text/plain"]
    assert "http://127.0.0.1:" in output["data"]["text/plain"]
    assert fake_kernel.value("server.model_id, server.status") == "('tiny-llm', 'running')"
    assert fake_kernel.llama.flag("-c", "--ctx-size") == "1024"
    assert fake_kernel.llama.flag("-t", "--threads") == "1"
    assert len(result.updates) >= 2


def test_start_twice_is_no_error(fake_kernel: FakeKernel):
    fake_kernel.ok("%genai start --port auto")
    assert "is running already" in fake_kernel.ok("%genai start").text
    assert fake_kernel.value("len(__import__('psutil').Process().children())") == "1"
    assert alive(fake_kernel.llama.pid)


def test_another_model_in_the_same_place_is_refused_with_the_way_out(fake_kernel: FakeKernel, tmp_path):
    from tests.fakes.gguf_files import tiny_llm

    fake_kernel.ok(f"%genai import {tiny_llm(tmp_path / 'files' / 'other.gguf')} --name other")
    fake_kernel.ok("%genai start tiny-llm --port auto")
    result = fake_kernel.run("%genai start other --port auto")
    assert result.error is not None
    assert result.error["ename"] == "ServerError"
    assert "already running" in result.traceback
    assert "tiny-llm holds that place. Stop it first: %genai stop" in result.traceback


def test_a_port_in_use_is_named_when_asked_for_and_avoided_when_not(fake_kernel: FakeKernel):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = fake_kernel.run(f"%genai start tiny-llm --port {port}")
        assert result.error is not None
        assert result.error["ename"] == "PortInUseError"
        assert f"Port {port} is already in use by " in result.traceback
        assert "auto" in result.traceback


def test_an_engine_that_dies_at_start_is_one_error_with_its_last_words(fake_kernel: FakeKernel):
    fake_kernel.llama.set(exit_at_start=3, start_log=["error: \x1b[31mno such tensor\x1b[0m"])
    result = fake_kernel.run("%genai start tiny-llm --port auto")
    assert result.error is not None
    assert result.error["ename"] == "ServerError"
    assert "failed" in result.text
    assert "no such tensor" in fake_kernel.ok("%genai logs --into lines").stdout
    assert "\x1b" not in fake_kernel.ok("%genai logs").stdout
    assert "crashed" in fake_kernel.ok("%genai status").text


def test_interrupt_ends_the_start_and_the_engine(fake_kernel: FakeKernel):
    fake_kernel.llama.set(load_seconds=600)

    def loading() -> bool:
        return any("--port" in start["argv"] for start in fake_kernel.llama.starts)

    result = fake_kernel.run(
        "%genai start tiny-llm --port auto",
        when=lambda so_far: loading() and "Starting tiny-llm" in so_far.text,
        then=fake_kernel.interrupt,
    )
    assert result.error is not None
    assert result.error["ename"] == "Interrupted"
    assert len(result.error["traceback"]) == 1
    eventually(lambda: not alive(fake_kernel.llama.pid), "the end of the engine")
    assert "stopped" in fake_kernel.ok("%genai status").text
    fake_kernel.llama.reset()
    fake_kernel.ok("%genai start tiny-llm --port auto")


def test_restart_and_stop(fake_kernel: FakeKernel):
    fake_kernel.ok("%genai start tiny-llm --port auto")
    fake_kernel.ok("%genai start --images --port auto")
    first = fake_kernel.llama.pid
    assert "is running again" in fake_kernel.ok("%genai restart llm").text
    assert not alive(first)
    assert alive(fake_kernel.llama.pid)
    stopped = fake_kernel.ok("%genai stop")
    assert "The language model (tiny-llm) is stopped." in stopped.text
    assert "Image generation (tiny-picture) is stopped." in stopped.text
    assert not alive(fake_kernel.llama.pid)
    assert "Nothing is running." in fake_kernel.ok("%genai stop").text
