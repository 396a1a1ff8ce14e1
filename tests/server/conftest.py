"""A notebook server in this process (pytest-jupyter), with our extension, fake engines and tiny models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.httpclient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytest_jupyter.jupyter_core import *  # noqa: F403
    from pytest_jupyter.jupyter_server import *  # noqa: F403
    from pytest_jupyter.pytest_tornasync import *  # noqa: F403

from jupyter_server.auth import Authorizer
from jupyter_server.serverapp import ServerApp

from genai_notebook.server.extension import GenaiNotebookApp
from tests.fakes import FakeEngine
from tests.fakes.gguf_files import tiny_diffusion, tiny_llm
from tests.processes import assert_none_left


class RecordingAuthorizer(Authorizer):
    """Allows everything but what `refuse` holds, and remembers what it was asked."""

    asked: list[tuple[str, str, str]]
    refuse: bool

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.asked = []
        self.refuse = False

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        self.asked.append((action, resource, handler.request.path))
        return not self.refuse


@pytest.fixture
def fake_llama(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "fakes", "llama")


@pytest.fixture
def fake_sd(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "fakes", "sd")


@pytest.fixture
def jp_server_config(
    home: Path, fake_llama: FakeEngine, fake_sd: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setenv("GENAI_NOTEBOOK_LLAMA_SERVER", str(fake_llama.path))
    monkeypatch.setenv("GENAI_NOTEBOOK_SD_SERVER", str(fake_sd.path))
    return {
        "ServerApp": {
            # Its websocket trips over our warnings filter, and it is not what is tested here.
            "jpserver_extensions": {"genai_notebook": True, "jupyter_server_terminals": False},
            "allow_unauthenticated_access": False,
            "authorizer_class": RecordingAuthorizer,
        }
    }


@pytest.fixture
def extension(jp_serverapp: ServerApp, tmp_path: Path) -> Iterator[GenaiNotebookApp]:
    """The extension as the server loaded it."""
    (app,) = jp_serverapp.extension_manager.extension_apps["genai_notebook"]
    assert isinstance(app, GenaiNotebookApp)
    yield app
    app.serverapp.io_loop.asyncio_loop.run_until_complete(app.stop_extension())
    assert_none_left(tmp_path)


class Answer:
    """One HTTP answer, errors included."""

    def __init__(self, response: tornado.httpclient.HTTPResponse) -> None:
        self.status = response.code
        self.headers = response.headers
        self.body: bytes = response.body or b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in the one shape that all have."""
        assert self.headers["Content-Type"].startswith("application/json"), self.body
        assert set(self.json) == {"error"}, self.body
        error: dict[str, Any] = self.json["error"]
        assert {"code", "message"} <= set(error) <= {"code", "message", "details", "hint"}
        return error


Call = Callable[..., Awaitable[Answer]]


@pytest.fixture
def call(extension: GenaiNotebookApp, http_server_client: Any, jp_auth_header: Any, jp_base_url: str) -> Call:
    """`await call("POST", "models/register", {...}, token=True)`: an Answer, whatever its status."""

    async def call(
        method: str,
        path: str,
        body: Any = None,
        *,
        token: bool = True,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if body is None and method in ("POST", "PUT", "PATCH"):
            body = ""
        response = await http_server_client.fetch(
            f"{jp_base_url}genai/{path}",
            method=method,
            body=body,
            headers={**(jp_auth_header if token else {}), **(headers or {})},
            raise_error=False,
            follow_redirects=False,
            allow_nonstandard_methods=True,
            request_timeout=30,
            **more,
        )
        return Answer(response)

    return call


class Models:
    def __init__(self, llm: str, image: str) -> None:
        self.llm, self.image = llm, image


@pytest.fixture
def models(extension: GenaiNotebookApp, tmp_path: Path, jp_asyncio_loop: Any) -> Models:
    """Two tiny models in the store."""
    manager = extension.runtime.model_manager
    llm, image = tiny_llm(tmp_path / "files" / "tiny.gguf"), tiny_diffusion(tmp_path / "files" / "picture.gguf")

    async def register() -> Models:
        return Models(
            (await manager.register_model(path=str(llm), type="llm")).id,
            (await manager.register_model(path=str(image), type="diffusion")).id,
        )

    return jp_asyncio_loop.run_until_complete(register())  # type: ignore[no-any-return]
