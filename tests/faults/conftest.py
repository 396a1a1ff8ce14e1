"""A scene for accidents: fakes, tiny models in a home, and programs that own engines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from genai_notebook.core.engines import places
from genai_notebook.core.models import ModelManager
from genai_notebook.core.settings import Settings
from tests.fakes import FakeEngine, eventually
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.fakes.releases import Shelf
from tests.faults.builds import PROGRAM
from tests.jupyter import JupyterServer
from tests.processes import assert_none_left

ROOT = Path(__file__).parent.parent.parent


class Scene:
    """`llama` and `sd` are the fakes; `settings` names them; the models are 'tiny-llm' and 'tiny-picture'."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llama, self.sd = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        self.settings = Settings(home=folder / "home", llama_server=self.llama.path, sd_server=self.sd.path)
        asyncio.run(self._register())
        self._programs: list[subprocess.Popen[bytes]] = []

    async def _register(self) -> None:
        models = ModelManager(self.settings)
        files = self.folder / "files"
        await models.register_model(path=str(tiny_llm(files / "llm.gguf")), name="Tiny LLM", type="llm")
        await models.register_model(path=str(tiny_diffusion(files / "p.gguf")), name="Tiny picture", type="diffusion")

    @property
    def environ(self) -> dict[str, str]:
        return {
            "GENAI_NOTEBOOK_HOME": str(self.settings.home),
            "GENAI_NOTEBOOK_LLAMA_SERVER": str(self.llama.path),
            "GENAI_NOTEBOOK_SD_SERVER": str(self.sd.path),
        }

    def owner(self, *words: str) -> subprocess.Popen[bytes]:
        """A program that owns engines, when it has said that it is ready."""
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.owner", str(self.folder), *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._programs.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        return program

    def jupyter(self) -> JupyterServer:
        return JupyterServer(self.folder / "jupyter", self.environ)

    def end(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait(30)
            for pipe in (program.stdin, program.stdout):
                if pipe:
                    pipe.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.end()
    assert_none_left(tmp_path)


def guard_of(engine: int) -> psutil.Process:
    """The guard of an engine: its parent, and no other program."""
    guard = psutil.Process(engine).parent()
    assert guard is not None
    assert any(word.endswith("guard.py") for word in guard.cmdline())
    return guard


def gone(*pids: int) -> None:
    """Wait until all of them are gone."""
    from tests.processes import alive

    for pid in pids:
        eventually(lambda pid=pid: not alive(pid), f"the end of process {pid}")


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """A release server, and the catalogue of what it has."""
    with Shelf() as shelf:
        yield shelf


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No wheels; on the PATH is an engine that would do as well."""
    monkeypatch.setattr(places, "is_there", lambda module: False)
    path = tmp_path / "bin" / "llama-server"
    path.parent.mkdir()
    path.write_bytes(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    return path
