"""From `llama_server.start()` to ready, against the same engine with the same flags started by hand.

The engine has passed its tests before; a new Runtime finds that on the disk, and hashes nothing that has not changed.
By hand means: the process is started and `/health` is asked every 5 ms. Uses the starter LLM, and the engine from the
wheel; the native one too, where `scripts/native` has built it.

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
from typing import Any, Literal

import msgspec
from side_by_side import in_turns, line, verdict

from genai_notebook.core.processes.launcher import GuardLauncher, LaunchSpec
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings
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


def measure(settings: Settings, rounds: int) -> bool:
    """One engine: the validated start of a new Runtime, which knows its engines only from the disk, and by hand."""
    loop = asyncio.new_event_loop()
    recorder = Recorder()

    async def make() -> Runtime:
        runtime = Runtime(settings, launcher=recorder)
        await runtime.open()
        return runtime

    def managed(port: int | Literal["auto"]) -> tuple[float, int]:
        runtime = loop.run_until_complete(make())
        begin = time.perf_counter()
        info = loop.run_until_complete(runtime.llama_server.start(model_id=LLM_ID, port=port))
        spent = (time.perf_counter() - begin) * 1000
        loop.run_until_complete(runtime.close())
        assert info.port is not None
        return spent, info.port

    port = managed("auto")[1]  # the tests of the engine are made here
    assert recorder.spec is not None
    spec = recorder.spec
    arguments = spec.argv[:]
    arguments[arguments.index("--port") + 1] = str(port)
    spec = LaunchSpec(name=spec.name, argv=arguments, env=spec.env, cwd=spec.cwd)
    print(f"start to ready: {spec.name}, {LLM_ID}")
    ours, theirs = in_turns([lambda: managed(port)[0], lambda: by_hand(spec, port)], rounds)
    loop.close()
    line("llama_server.start(), tests passed before", ours)
    line("by hand, polled every 5 ms", theirs)
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"  {'more':<46} {mine - other:9.1f} ms")
    return verdict("ratio", mine / other, max(1.05, (other + 40) / other))


def native_server() -> Path | None:
    """llama-server as `scripts/native` has built it, if it has."""
    command = ["sh", str(Path(__file__).parent.parent / "scripts" / "native"), "--where"]
    folders = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [Path(folder) / "llama-server" for folder in folders]
    return next((path for path in found if path.exists()), None)


def main(rounds: int) -> int:
    native = native_server()
    with tempfile.TemporaryDirectory() as folder:
        home = asyncio.run(ahome_with_models(Path(folder), image=False))
        settings = msgspec.structs.replace(home.settings, mirror="off")
        good = measure(settings, rounds)
        if native is None:
            print("no native llama-server: scripts/native builds it")
        else:
            good = measure(msgspec.structs.replace(settings, llama_server=native), rounds) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
