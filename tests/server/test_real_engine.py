"""A real LLM behind a real notebook server: through the proxy, and gone with its server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.fakes import eventually
from tests.jupyter import TOKEN, JupyterServer
from tests.models import home_with_models
from tests.processes import alive, assert_none_left

pytestmark = pytest.mark.engines

QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


def test_a_true_answer_comes_word_by_word_and_nothing_is_left(tmp_path: Path) -> None:
    home = home_with_models(tmp_path, image=False)
    server = JupyterServer(tmp_path / "jupyter", {"GENAI_NOTEBOOK_HOME": str(home.settings.home)})
    try:
        body = {"modelId": home.llm_id, "port": "auto", "contextSize": 512}
        info = server.request("POST", "genai/llama/start", body)
        assert info["status"] == "running"
        chat = {"messages": QUESTION, "stream": True, "temperature": 0, "max_tokens": 32}
        request = urllib.request.Request(server.url + "genai/llama/v1/chat/completions", json.dumps(chat).encode())
        request.add_header("Authorization", f"token {TOKEN}")
        request.add_header("Content-Type", "application/json")
        pieces = []
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as reply:
            assert reply.headers["Content-Type"].startswith("text/event-stream")
            for line in reply:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:]).get("choices", []):
                        pieces.append(choice["delta"].get("content") or "")
        assert len([piece for piece in pieces if piece]) >= 4
        assert "Paris" in "".join(pieces)
    finally:
        server.kill()
    eventually(lambda: not alive(info["pid"]), "the end of the engine")
    assert_none_left(tmp_path)
