"""One suite, two subjects: the Runtime in this process, and the client of one that lives in a real notebook server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from genai_notebook.client.remote import RemoteRuntime
from genai_notebook.core.runtime import Runtime
from genai_notebook.core.settings import Settings
from genai_notebook.server.standalone import listen
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.jupyter import JupyterServer
from tests.processes import assert_none_left, ours

T = TypeVar("T")
LIMIT = 60.0
# What a child must never see, set in the owner's environment by the fixtures below.
SECRETS = {"HF_TOKEN": "hf-secret", "JUPYTER_TOKEN": "jupyter-secret", "AWS_SECRET_ACCESS_KEY": "aws-secret"}


class Subject:
    """A Runtime, local or remote, with fake engines and tiny models; everything async runs on one loop."""

    def __init__(self, kind: Literal["local", "remote"], folder: Path, llama: FakeEngine, sd: FakeEngine) -> None:
        self.kind = kind
        self.folder = folder
        self.fake_llama, self.fake_sd = llama, sd
        self.loop = asyncio.new_event_loop()
        self.runtime: Any = None
        self.llm_id = self.image_id = ""

    @property
    def owner(self) -> str:
        return "kernel" if self.kind == "local" else "jupyter-server"

    @property
    def llama(self) -> Any:
        return self.runtime.llama_server

    @property
    def diffusion(self) -> Any:
        return self.runtime.diffusion_server

    @property
    def models(self) -> Any:
        return self.runtime.model_manager

    def run(self, work: Coroutine[Any, Any, T], limit: float = LIMIT) -> T:
        """Run a scenario on the subject's loop; a generous limit ends what hangs."""
        return self.loop.run_until_complete(asyncio.wait_for(work, limit))

    async def start_llm(self, **more: Any) -> Any:
        return await self.llama.start(**{"model_id": self.llm_id, "port": "auto", **more})

    async def start_images(self, **more: Any) -> Any:
        return await self.diffusion.start(**{"model_id": self.image_id, "port": "auto", **more})

    async def paint(self, **more: Any) -> Any:
        return await self.diffusion.generate_image(**{"prompt": "x", "width": 64, "height": 64, "steps": 3, **more})

    async def open(self) -> None:
        await self.runtime.open()
        for model in await self.models.list_models():
            await self.models.delete_model(model.id)
        files = self.folder / "files"
        self.llm_file, self.image_file = tiny_llm(files / "tiny.gguf"), tiny_diffusion(files / "picture.gguf")
        self.llm_id = (await self.models.register_model(path=str(self.llm_file), type="llm")).id
        self.image_id = (await self.models.register_model(path=str(self.image_file), type="diffusion")).id

    async def close(self) -> None:
        await self.llama.stop()
        await self.diffusion.stop()
        await self.runtime.get_llama_server("second").stop()
        await self.runtime.close()


class Remote:
    """The notebook server that all remote tests share, and its fakes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llama, self.sd = FakeEngine(folder / "fakes", "llama"), FakeEngine(folder / "fakes", "sd")
        environ = {
            "GENAI_NOTEBOOK_HOME": str(folder / "home"),
            "GENAI_NOTEBOOK_LLAMA_SERVER": str(self.llama.path),
            "GENAI_NOTEBOOK_SD_SERVER": str(self.sd.path),
            **SECRETS,
        }
        self.server = JupyterServer(folder / "jupyter", environ)


@pytest.fixture(scope="session")
def _remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    remote = Remote(tmp_path_factory.mktemp("remote"))
    yield remote
    remote.server.stop()
    assert_none_left(remote.folder)


@pytest.fixture(params=["local", "remote"])
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    if request.param == "local":
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        llama, sd = FakeEngine(tmp_path / "fakes", "llama"), FakeEngine(tmp_path / "fakes", "sd")
        subject = Subject("local", tmp_path, llama, sd)
        settings = Settings(home=tmp_path / "home", llama_server=llama.path, sd_server=sd.path)
        runtime: Any = subject.loop.run_until_complete(_make(lambda: Runtime(settings, owner="kernel", listen=listen)))
    else:
        remote: Remote = request.getfixturevalue("_remote")
        remote.llama.reset()
        remote.sd.reset()
        subject = Subject("remote", remote.folder, remote.llama, remote.sd)
        runtime = subject.loop.run_until_complete(_make(lambda: RemoteRuntime(remote.server.url, remote.server.token)))
    subject.runtime = runtime
    try:
        subject.run(subject.open())
        yield subject
    finally:
        subject.run(subject.close())
        subject.loop.close()
    if request.param == "local":
        assert_none_left(tmp_path)
    else:
        engines = subject.fake_llama.starts + subject.fake_sd.starts
        left = [process for process in ours(subject.folder) if process.pid in {entry["pid"] for entry in engines}]
        assert not left


async def _make(make: Callable[[], T]) -> T:
    return make()  # on the loop it will live on


def environment_of(fake: FakeEngine) -> dict[str, str]:
    """What the latest engine process saw, without what every process has."""
    return {name: value for name, value in fake.starts[-1]["env"].items() if os.environ.get(name) != value}
