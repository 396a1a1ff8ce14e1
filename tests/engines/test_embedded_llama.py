"""The embedded llama-server with the real starter LLM."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.running import LLAMA, Running, run_to_end
from tests.models import starter_llm

pytestmark = pytest.mark.engines

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
SMALL = ("-c", "512", "-t", "2", "-np", "1", "-fit", "off", "-ngl", "0")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One engine for all tests that only ask."""
    arguments = ("-m", str(starter_llm()), "--port", "0", "-c", "1024", "-t", "2", "-np", "2", "--kv-unified")
    more = ("-fa", "auto", "-fit", "off", "-ngl", "0", "--jinja", "--reasoning-format", "deepseek", "-a", "starter")
    with Running(
        LLAMA, *arguments, *more, cwd=tmp_path_factory.mktemp("llama"), env={"LLAMA_API_KEY": "secret-of-the-test"}
    ) as running:
        running.key = "secret-of-the-test"
        running.ready()
        yield running


def test_it_knows_the_capital_of_france(engine: Running) -> None:
    assert engine.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    status, reply, _ = engine.ask(
        "POST", "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 32, "temperature": 0}
    )
    assert status == 200
    assert "Paris" in reply["choices"][0]["message"]["content"]
    assert reply["model"] == "starter"


def test_an_answer_streams(engine: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    headers = {"Authorization": f"Bearer {engine.key}", "Content-Type": "application/json"}
    body = {"messages": QUESTION, "max_tokens": 16, "temperature": 0, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    events = [line[6:] for line in connection.getresponse().read().decode().splitlines() if line.startswith("data: ")]
    connection.close()
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"] for event in events[:-1]]
    text = [piece[0]["delta"].get("content") or "" for piece in pieces if piece]
    assert len([part for part in text if part]) > 3
    assert "Paris" in "".join(text)


def test_the_flags_arrive(engine: Running) -> None:
    _, props, _ = engine.ask("GET", "/props")
    assert props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 1024  # each slot has all of it: --kv-unified
    assert props["model_path"] == str(starter_llm())


def test_without_the_key_nothing_is_answered(engine: Running) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        assert engine.ask("GET", "/props", headers=headers)[0] == 401
        body = {"messages": QUESTION, "max_tokens": 1}
        assert engine.ask("POST", "/v1/chat/completions", body, headers=headers)[0] == 401
    # What a supervisor polls is open, and tells nothing.
    assert engine.ask("GET", "/health", headers={"Authorization": ""})[0] == 200


def test_no_web_page_is_let_in(engine: Running) -> None:
    evil = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("GET", "/health"), ("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/models")):
        allowed = engine.ask(method, path, headers=evil)[2].get("access-control-allow-origin", "")
        assert allowed == ""
    status, body, _ = engine.ask("GET", "/")
    assert status == 404
    assert "html" not in str(body).lower()


def test_key_files_and_several_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n\nsecond\n")
    arguments = ("-m", str(starter_llm()), "--port", "0", *SMALL, "--api-key-file", str(keys), "--api-key", "third")
    with Running(LLAMA, *arguments, cwd=tmp_path) as engine:
        engine.ready()
        for key, status in (("first", 200), ("second", 200), ("third", 200), ("fourth", 401), ("", 401)):
            assert engine.ask("GET", "/props", headers={"Authorization": f"Bearer {key}"})[0] == status


def test_embeddings(tmp_path: Path) -> None:
    arguments = ("-m", str(starter_llm()), "--port", "0", *SMALL, "--embeddings", "--pooling", "mean")
    with Running(LLAMA, *arguments, cwd=tmp_path) as engine:
        engine.ready()
        status, reply, _ = engine.ask("POST", "/v1/embeddings", {"input": "a cat"})
        assert status == 200
        assert len(reply["data"][0]["embedding"]) == 576


def test_sigterm_ends_it_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    with Running(LLAMA, "-m", str(starter_llm()), "--port", "0", *SMALL, cwd=tmp_path) as engine:
        engine.ready()
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                engine.ask("POST", "/completion", {"prompt": "Once upon a time", "n_predict": 400, "ignore_eos": True})
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        engine.until(lambda: "processing task" in engine.output, "task")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.finish(10) == 0
        asking.join(10)
        assert errors


def test_sigterm_ends_it_while_it_loads(tmp_path: Path) -> None:
    with Running(LLAMA, "-m", str(starter_llm()), "--port", "0", *SMALL, cwd=tmp_path) as engine:
        engine.until(lambda: "loading model" in engine.output, "loading line")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.finish(10) in (0, -signal.SIGTERM)
        assert "listening on" not in engine.output


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = run_to_end(LLAMA, "-m", str(starter_llm()), "--port", port, *SMALL, cwd=tmp_path)
    assert program.process.returncode == 1
    assert "couldn't bind" in program.output
    assert port in program.output


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model at all\n" * 100)
    program = run_to_end(LLAMA, "-m", str(path), "--port", "0", cwd=tmp_path)
    assert program.process.returncode == 1
    assert "failed to load model" in program.output
    assert "invalid magic" in program.output


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with starter_llm().open("rb") as whole:
        path.write_bytes(whole.read(20 << 20))
    program = run_to_end(LLAMA, "-m", str(path), "--port", "0", cwd=tmp_path)
    assert program.process.returncode == 1
    assert "failed to load model" in program.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--foo",), "error: invalid argument: --foo"),
        (("-m", "x.gguf", "--n-gpu-layer", "1"), "error: invalid argument: --n-gpu-layer"),
        (("--ctx-size=512",), "error: invalid argument: --ctx-size=512"),
        (("-c",), "error: -c: expected value"),
        (("-c", "many"), "error: -c: invalid value 'many'"),
        (("--port", "70000"), "error: --port: invalid value '70000'"),
        (("-fa", "maybe"), "error: -fa: invalid value 'maybe': must be one of on, off, auto"),
        (("-ctk", "q2_k"), "error: -ctk: invalid value 'q2_k'"),
        (("-m", "/nonexistent/x.gguf"), "error: no such file: /nonexistent/x.gguf"),
        ((), "error: -m is required"),
    ],
)
def test_what_it_refuses(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    program = run_to_end(LLAMA, *arguments, cwd=tmp_path)
    assert program.process.returncode == 1
    assert program.stderr.decode().startswith(said)
    assert "--help" in program.output
    assert "Traceback" not in program.output


def test_version_and_help(tmp_path: Path) -> None:
    version = run_to_end(LLAMA, "--version", cwd=tmp_path)
    assert version.process.returncode == 0
    assert version.output.startswith("version: ")
    shown = run_to_end(LLAMA, "--help", cwd=tmp_path)
    assert shown.process.returncode == 0
    assert all(flag in shown.output for flag in ("--model", "--ctx-size", "--kv-unified", "--api-key-file"))


def test_every_setting_is_taken(tmp_path: Path) -> None:
    """All flags at once: each names a setting that this version of the wheel has, and the engine still starts."""
    flags = """
        --host 127.0.0.1 --port 0 -c 512 -n 64 -t 2 -tb 2 --threads-http 2 -ngl auto -np 2 --no-kv-unified -fa on
        -b 256 -ub 128 -ctk q8_0 -ctv q8_0 -cram 0 -nkvo -mg 0 --no-jinja --reasoning-format none --chat-template chatml
        --fit on --pooling none --no-slots --metrics --props --no-webui --no-mmap --no-warmup --sleep-idle-seconds -1
        -to 30 -s 7 -lv 4 --api-key k
    """
    arguments = ("-m", str(starter_llm()), *flags.split())
    with Running(LLAMA, *arguments, cwd=tmp_path) as engine:
        engine.key = "k"
        engine.ready()
        _, props, _ = engine.ask("GET", "/props")
        assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 256)
        assert engine.ask("GET", "/metrics")[0] == 200
        assert engine.ask("GET", "/slots")[0] == 501
