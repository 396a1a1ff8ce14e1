"""The embedded llama-server under load: slots, metrics, keys, and clients that go away."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.running import LLAMA, Running
from tests.models import starter_llm

pytestmark = pytest.mark.engines

KEY = "secret-of-the-test"
ENDLESS = {"prompt": "Once upon a time", "n_predict": 2000, "ignore_eos": True, "temperature": 0}
#: All that llama-server keeps behind its key: everything but the two health checks.
PROTECTED = """
    GET /models|GET /v1/models|GET /props|GET /metrics|GET /slots|GET /lora-adapters|GET /tools|GET /cors-proxy
    POST /props|POST /completion|POST /completions|POST /v1/completions|POST /chat/completions
    POST /v1/chat/completions|POST /v1/responses|POST /v1/messages|POST /v1/messages/count_tokens|POST /infill
    POST /embedding|POST /embeddings|POST /v1/embeddings|POST /rerank|POST /reranking|POST /v1/rerank
    POST /tokenize|POST /detokenize|POST /apply-template|POST /lora-adapters|POST /slots/0
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two slots, as the manager starts them, with metrics."""
    flags = "--port 0 --ctx-size 4096 --parallel 2 --kv-unified --n-gpu-layers 0 --flash-attn auto --threads 2"
    more = "--fit off --cache-ram 0 --verbosity 4 --metrics"
    arguments = ("--model", str(starter_llm()), *flags.split(), *more.split())
    with Running(LLAMA, *arguments, cwd=tmp_path_factory.mktemp("llama"), env={"LLAMA_API_KEY": KEY}) as running:
        running.key = KEY
        running.ready()
        yield running


def busy(engine: Running) -> int:
    """Slots that work."""
    status, slots, _ = engine.ask("GET", "/slots")
    assert status == 200
    return sum(bool(slot["is_processing"]) for slot in slots)


def start(engine: Running, body: dict[str, Any]) -> http.client.HTTPConnection:
    """Ask, and do not wait for the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/completion", json.dumps(body).encode(), headers)
    return connection


def test_metrics_are_prometheus_text(engine: Running) -> None:
    assert engine.ask("POST", "/completion", {"prompt": "One, two,", "n_predict": 4})[0] == 200
    status, text, headers = engine.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = text.decode().splitlines()
    assert "# TYPE llamacpp:tokens_predicted_total counter" in lines
    values = dict(line.split(" ") for line in lines if not line.startswith("#"))
    assert float(values["llamacpp:tokens_predicted_total"]) >= 4
    assert "llamacpp:requests_processing" in values


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_answer(engine: Running, stream: bool) -> None:
    assert busy(engine) == 0
    connection = start(engine, {**ENDLESS, "stream": stream})
    engine.until(lambda: busy(engine) == 1, "busy slot", 10)
    ended = engine.output.count("stop processing")
    connection.close()
    began = time.monotonic()
    # The log is watched and not /slots: the engine looks after its clients when nobody has asked it for a second.
    engine.until(lambda: engine.output.count("stop processing") > ended, "end of the answer", 10)
    assert time.monotonic() - began < 2
    assert busy(engine) == 0


def test_two_at_once_on_two_slots(engine: Running) -> None:
    bodies = [{**ENDLESS, "n_predict": 100, "prompt": prompt} for prompt in ("Once upon a time", "The weather is")]
    together = []
    connections = [start(engine, body) for body in bodies]
    watching = threading.Event()

    def watch() -> None:
        while not watching.is_set():
            together.append(busy(engine))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    answers = [json.loads(connection.getresponse().read()) for connection in connections]
    watching.set()
    watcher.join(30)
    for connection in connections:
        connection.close()
    assert max(together) == 2
    assert {answer["id_slot"] for answer in answers} == {0, 1}
    assert [answer["tokens_predicted"] for answer in answers] == [100, 100]
    assert all(answer["content"].strip() for answer in answers)


@pytest.mark.parametrize("words", PROTECTED.replace("\n", "|").split("|"))
def test_the_key_protects(engine: Running, words: str) -> None:
    if not words.strip():
        return
    method, path = words.split()
    body = {} if method == "POST" else None
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"X-Api-Key": "wrong", "Authorization": ""},
    ):
        status, reply, _ = engine.ask(method, path, body, headers)
        assert status == 401
        assert "Invalid API Key" in reply["error"]["message"]


def test_what_would_reach_further_is_off(engine: Running) -> None:
    """The proxy for web pages and the tools that run on this machine: not even with the key."""
    for path in ("/cors-proxy?url=http://127.0.0.1:1/", "/tools"):
        assert engine.ask("GET", path)[0] in (403, 404, 501)


def test_slots_and_metrics_only_when_asked_for(tmp_path: Path) -> None:
    flags = "--port 0 -c 256 -np 1 -fit off -ngl 0 --no-slots"
    with Running(LLAMA, "-m", str(starter_llm()), *flags.split(), cwd=tmp_path) as engine:
        engine.ready()
        assert (engine.ask("GET", "/slots")[0], engine.ask("GET", "/metrics")[0]) == (501, 501)
