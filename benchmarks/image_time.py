"""A warm image through `generate_image`, against the same job posted straight to the same resident engine.

Uses the check model (random weights): 64×64 pixels, 4 steps. Straight means: posted, and asked for every 20 ms;
asking more often takes time from the engine.

    python benchmarks/image_time.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import in_turns, line, verdict

from genai_notebook.core.engines.sdcpp import job_request
from genai_notebook.core.processes.registry import EngineRegistry
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.schema import ImageGenerationConfig
from tests.models import IMAGE_ID, ahome_with_models

CONFIG = ImageGenerationConfig(prompt="a lighthouse", width=64, height=64, steps=4, cfg_scale=1, seed=1)


class Straight:
    """A plain client of the engine's job API, one connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, {"Content-Type": "application/json"})
        return json.loads(self.connection.getresponse().read())

    def paint(self) -> float:
        begin = time.perf_counter()
        job = self.ask("POST", "/sdcpp/v1/img_gen", job_request(CONFIG, 1))
        while (state := self.ask("GET", f"/sdcpp/v1/jobs/{job['id']}"))["status"] not in ("completed", "failed"):
            time.sleep(0.02)
        base64.b64decode(state["result"]["images"][0]["b64_json"])
        return (time.perf_counter() - begin) * 1000


def main(rounds: int) -> int:
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        home = loop.run_until_complete(ahome_with_models(Path(folder), llm=False))

        async def make() -> Runtime:
            runtime = Runtime(home.settings)
            await runtime.open()
            await runtime.diffusion_server.start(model_id=IMAGE_ID)
            await runtime.diffusion_server.generate_image(CONFIG)
            return runtime

        runtime = loop.run_until_complete(make())
        (record,) = EngineRegistry(home.settings.run).engines()
        assert record.port is not None
        straight = Straight(record.port)

        def managed() -> float:
            begin = time.perf_counter()
            loop.run_until_complete(runtime.diffusion_server.generate_image(CONFIG))
            return (time.perf_counter() - begin) * 1000

        print(f"a warm image: {record.engine}, 64×64, 4 steps")
        ours, theirs = in_turns([managed, straight.paint], rounds)
        loop.run_until_complete(runtime.close())
    line("generate_image()", ours)
    line("posted straight to the engine", theirs)
    return 0 if verdict("ratio", statistics.median(ours) / statistics.median(theirs), 1.05) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
