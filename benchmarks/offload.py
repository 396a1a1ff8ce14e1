"""An image that makes the LLM step aside, until the LLM is ready again, against the same three steps one after another.

The real starter LLM and the check model on a machine that is played too small for both. By hand: stop the LLM, make the
image (which loads its model), end the image engine, start the LLM. The image must be there before the reload begins.

    python benchmarks/offload.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from side_by_side import in_turns, line, verdict

from genai_notebook.core.runtime import Runtime
from genai_notebook.core.schema import ImageGenerationConfig
from tests.models import IMAGE_ID, LLM_ID, ahome_with_models

CONFIG = ImageGenerationConfig(prompt="a lighthouse", width=64, height=64, steps=4, cfg_scale=1, seed=1)
TOO_SMALL = 900 << 20


class Diary:
    """When the picture was there, and when the LLM began to come back."""

    def __init__(self, runtime: Runtime) -> None:
        self.picture = self.reload = 0.0
        runtime.subscribe(self._read)

    def _read(self, name: str, data: dict[str, Any]) -> None:
        if name == "generation" and data["status"] == "complete":
            self.picture = time.perf_counter()
        if name == "status" and data["server"] == "llama" and data["info"]["status"] == "starting":
            self.reload = time.perf_counter()


async def by_itself(runtime: Runtime) -> float:
    begin = time.perf_counter()
    await runtime.diffusion_server.generate_image(CONFIG)
    await runtime.orchestrator.wait_for_reload()
    took = time.perf_counter() - begin
    assert runtime.llama_server.get_status() == "running"
    return took * 1000


async def by_hand(runtime: Runtime) -> float:
    begin = time.perf_counter()
    await runtime.llama_server.stop()
    await runtime.diffusion_server.generate_image(CONFIG)
    await runtime.diffusion_server.release()
    await runtime.llama_server.restart()
    return (time.perf_counter() - begin) * 1000


def main(rounds: int) -> int:
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        home = loop.run_until_complete(ahome_with_models(Path(folder)))

        async def make() -> tuple[Runtime, Diary]:
            runtime = Runtime(msgspec.structs.replace(home.settings, memory_limit=TOO_SMALL))
            await runtime.open()
            await runtime.llama_server.start(model_id=LLM_ID, port="auto")
            await runtime.diffusion_server.start(model_id=IMAGE_ID)
            return runtime, Diary(runtime)

        runtime, diary = loop.run_until_complete(make())
        early: list[bool] = []

        def ours() -> float:
            took = loop.run_until_complete(by_itself(runtime))
            early.append(0 < diary.picture < diary.reload)
            return took

        def theirs() -> float:
            return loop.run_until_complete(by_hand(runtime))

        print("the LLM out, an image of 64×64 in 4 steps, the LLM in again")
        orchestrated, manual = in_turns([ours, theirs], rounds)
        loop.run_until_complete(runtime.close())
    line("by itself", orchestrated)
    line("the three steps by hand", manual)
    good = verdict("ratio", statistics.median(orchestrated) / statistics.median(manual), 1.10)
    shown = all(early)
    print(f"  {'the picture before the reload':<46} {'always' if shown else 'NOT ALWAYS'}")
    return 0 if good and shown else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
