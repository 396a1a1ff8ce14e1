"""From `llama_server.start()` to ready, against the same engine with the same flags started by hand.

By hand means: the process is started and `/health` is asked every 5 ms. Uses the starter LLM.

    python benchmarks/start_time.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import in_turns, line, verdict

from genai_notebook.core.processes.launcher import GuardLauncher, LaunchSpec
from genai_notebook.core.runtime import Runtime
from tests.models import LLM_ID, ahome_with_models


class Recorder:
    """The real launcher, which remembers what it was told to start."""

    def __init__(self) -> None:
        self.launcher = GuardLauncher()
        self.spec: LaunchSpec | None = None

    async def launch(self, spec: LaunchSpec, on_line: Any) -> Any:
        self.spec = spec
        return await self.launcher.launch(spec, on_line)


def by_hand(spec: LaunchSpec, port: int) -> float:
    """Milliseconds until the engine answers; the engine is ended afterwards."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        spec.argv,
        env=spec.env,
        cwd=spec.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        while not healthy(port):
            if process.poll() is not None:
                raise RuntimeError(f"the engine ended with {process.returncode}")
            time.sleep(0.005)
        return (time.perf_counter() - begin) * 1000
    finally:
        process.terminate()
        process.wait(30)


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main(rounds: int) -> int:
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        home = loop.run_until_complete(ahome_with_models(Path(folder), image=False))
        recorder = Recorder()

        async def make() -> Runtime:
            runtime = Runtime(home.settings, launcher=recorder)
            await runtime.open()
            info = await runtime.llama_server.start(model_id=LLM_ID, port="auto")
            await runtime.llama_server.stop()
            runtime.port = info.port  # type: ignore[attr-defined]
            return runtime

        runtime = loop.run_until_complete(make())
        port: int = runtime.port  # type: ignore[attr-defined]

        def managed() -> float:
            begin = time.perf_counter()
            loop.run_until_complete(runtime.llama_server.start(model_id=LLM_ID, port=port))
            spent = (time.perf_counter() - begin) * 1000
            loop.run_until_complete(runtime.llama_server.stop())
            return spent

        assert recorder.spec is not None
        spec = recorder.spec
        print(f"start to ready: {spec.name}, {LLM_ID}")
        ours, theirs = in_turns([managed, lambda: by_hand(spec, port)], rounds)
        loop.run_until_complete(runtime.close())
    line("llama_server.start()", ours)
    line("by hand, polled every 5 ms", theirs)
    mine, other = statistics.median(ours), statistics.median(theirs)
    return 0 if verdict("ratio", mine / other, max(1.05, (other + 40) / other)) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
