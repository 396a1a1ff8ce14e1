"""Engines that nobody has tested yet, and models for them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genai_notebook.core.models import ModelManager
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.errors import BinaryError, InvalidRequestError, ServerError
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.fakes.machine import Machine
from tests.fakes.releases import GIB, Shelf


class House:
    """Engines that nobody has tested yet, and models for them: tiny-llm, other-llm, tiny-picture, other-picture."""

    def __init__(self, folder: Path, *, machine: Machine | None = None, shelf: Shelf | None = None) -> None:
        self.folder = folder
        self.machine = machine or Machine(ram=16 * GIB)
        self.fakes: dict[str, FakeEngine] = {
            "llm": FakeEngine(folder / "fakes", "llama", proved=False),
            "images": FakeEngine(folder / "fakes", "sd", proved=False),
        }
        self._shelf = shelf
        own = {"llama_server": self.fakes["llm"].path, "sd_server": self.fakes["images"].path}
        self.settings = Settings(home=folder / "home", mirror=shelf.url if shelf else OFF, **({} if shelf else own))
        asyncio.run(self._register())

    async def _register(self) -> None:
        models, files = ModelManager(self.settings), self.folder / "files"
        for name in ("tiny-llm", "other-llm"):
            await models.register_model(path=str(tiny_llm(files / f"{name}.gguf")), name=name, type="llm")
        for name in ("tiny-picture", "other-picture"):
            await models.register_model(path=str(tiny_diffusion(files / f"{name}.gguf")), name=name, type="diffusion")

    def runtime(self) -> Runtime:
        runtime = Runtime(self.settings, probe=self.machine)
        if self._shelf is not None:
            runtime.engine_manager._catalog = self._shelf.catalog
        return runtime

    def run(self, scenario: Callable[[Runtime], Any]) -> Any:
        """Run `scenario(runtime)` as a session of its own."""

        async def main() -> Any:
            runtime = self.runtime()
            await runtime.open()
            try:
                return await asyncio.wait_for(scenario(runtime), 90)
            finally:
                await runtime.close()

        return asyncio.run(main())

    def trials(self, kind: str) -> list[dict[str, Any]]:
        """The starts that were trials: of the LLM by the small context, of images by the picture that was asked for."""
        fake = self.fakes[kind]
        if kind == "llm":
            return [start for start in fake.starts if trial_flag(start, "--ctx-size") == "512"]
        painted = {job["pid"] for job in fake.journal("job") if job["body"]["prompt"] == "a grey square"}
        return [start for start in fake.starts if start["pid"] in painted]

    def refused(self, kind: str, model: str | None = None, **options: Any) -> Any:
        """The error that a start ends with, in a session of its own."""

        async def scenario(runtime: Runtime) -> Any:
            with pytest.raises((BinaryError, InvalidRequestError, ServerError)) as caught:
                await start(runtime, kind, model, **options)
            return caught.value

        return self.run(scenario)

    def works(self, kind: str, model: str | None = None, **options: Any) -> str:
        """The engine that a start ends with, in a session of its own."""

        async def scenario(runtime: Runtime) -> str:
            return str((await start(runtime, kind, model, **options)).engine)

        return self.run(scenario)


def grow_old(home: Path, seconds: float) -> None:
    """Let so much time pass for the failures that are remembered below `home`."""
    path = home / "cache" / "engines.json"
    known = json.loads(path.read_text())
    for verdict in known["verdicts"].values():
        for failure in verdict.get("failures", {}).values():
            failure["until"] -= seconds
    new = path.with_suffix(".new")
    new.write_text(json.dumps(known))
    os.replace(new, path)


def trial_flag(start: dict[str, Any], name: str) -> str | None:
    argv = start["argv"]
    return str(argv[argv.index(name) + 1]) if name in argv else None


async def start(runtime: Runtime, kind: str, model: str | None = None, **options: Any) -> Any:
    if kind == "llm":
        return await runtime.llama_server.start(model_id=model or "tiny-llm", port="auto", **options)
    return await runtime.diffusion_server.start(model_id=model or "tiny-picture", **options)
