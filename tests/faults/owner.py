"""A program that owns engines, to be killed: `python -m tests.faults.owner FOLDER [WORD…]`.

It uses the fakes and files that `Scene` has put into FOLDER, says "ready" when what it was told to do is under way, and
waits. Words: llama, images, painting (an image that never ends), starting (an LLM that never gets ready), blocking (the
same through `run`), close (end properly when stdin closes), limit (no file may grow past 200 kB).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from genai_notebook.client.bridge import run
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings


async def start(runtime: Runtime, words: set[str]) -> None:
    if "llama" in words:
        await runtime.llama_server.start(model_id="tiny-llm", port="auto")
    if words & {"images", "painting"}:
        await runtime.diffusion_server.start(model_id="tiny-picture")
        await runtime.diffusion_server.generate_image(prompt="x", width=64, height=64, steps=1)
    if "painting" in words:
        config = {"prompt": "x", "width": 64, "height": 64, "steps": 1000}
        runtime.painting = asyncio.ensure_future(  # type: ignore[attr-defined]
            runtime.diffusion_server.generate_image(config)
        )
    if "starting" in words:
        runtime.starting = asyncio.ensure_future(  # type: ignore[attr-defined]
            runtime.llama_server.start(model_id="tiny-llm", port="auto")
        )


async def main(folder: Path, words: set[str]) -> None:
    runtime = Runtime(settings_of(folder))
    await runtime.open()
    await start(runtime, words)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if "close" in words:
        await runtime.close()


def settings_of(folder: Path) -> Settings:
    fakes = folder / "fakes"
    return Settings(home=folder / "home", llama_server=fakes / "fake-llama-server", sd_server=fakes / "fake-sd-server")


def blocking(folder: Path) -> None:
    """A script that waits for a start with `run`, as a magic does."""
    runtime = Runtime(settings_of(folder))
    run(runtime.open())
    print("ready", flush=True)
    try:
        run(runtime.llama_server.start(model_id="tiny-llm", port="auto"))
    except KeyboardInterrupt:
        print(f"interrupted {runtime.llama_server.get_status()}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), set(sys.argv[2:])
    if "limit" in words:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    if "blocking" in words:
        blocking(folder)
    else:
        asyncio.run(main(folder, words))
