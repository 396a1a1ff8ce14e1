"""The LLM and image servers: state, start, stop, logs. One set of handlers for `llama`, `llamas/NAME` and `diffusion`.

Routes give two arguments: the kind (`llama`, `llamas`, `diffusion`) and, for `llamas`, the name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado import web

from genai_notebook.core.schema import DiffusionServerConfig, LlamaServerConfig, ServerInfo
from genai_notebook.errors import InvalidRequestError
from genai_notebook.server.base import GenaiHandler

if TYPE_CHECKING:
    from genai_notebook.core.runtime import Runtime


def public_info(info: ServerInfo) -> dict[str, Any]:
    """`info` as JSON without its key, for places where states are read and keys are not needed."""
    built: dict[str, Any] = msgspec.to_builtins(info)
    built.pop("apiKey", None)
    return built


def public_infos(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """The state of every server that anybody has asked for, by name."""
    return {manager.name: public_info(manager.get_info()) for manager in runtime.servers()}


class ServerHandler(GenaiHandler):
    """What the handlers below share: finding the manager that the URL names."""

    def manager(self, kind: str, name: str | None) -> Any:
        if kind == "llamas":
            return self.runtime.get_llama_server(name or "")
        return self.runtime.llama_server if kind == "llama" else self.runtime.diffusion_server


class InfoHandler(ServerHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, kind: str, name: str | None = None) -> None:
        self.reply(self.manager(kind, name).get_info())


class HealthHandler(ServerHandler):
    """Asks the engine itself."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, kind: str, name: str | None = None) -> None:
        manager = self.manager(kind, name)
        healthy = await self.while_connected(manager.is_healthy())
        self.reply({"healthy": healthy, "health": manager.get_info().health})


class StartHandler(ServerHandler):
    """Answers when the server is ready. A caller that goes away before that ends its own start, and no other."""

    @web.authenticated
    @authorized
    async def post(self, kind: str, name: str | None = None) -> None:
        config: Any = self.body_as(DiffusionServerConfig if kind == "diffusion" else LlamaServerConfig)
        self.reply(await self.while_connected(self.manager(kind, name).start(config)))


class StopHandler(ServerHandler):
    @web.authenticated
    @authorized
    async def post(self, kind: str, name: str | None = None) -> None:
        self.no_body()
        manager = self.manager(kind, name)
        await manager.stop()
        self.reply(manager.get_info())


class RestartHandler(ServerHandler):
    @web.authenticated
    @authorized
    async def post(self, kind: str, name: str | None = None) -> None:
        self.no_body()
        self.reply(await self.manager(kind, name).restart())


class LogsHandler(ServerHandler):
    """`?lines=100` (or `all`), `?structured=true`."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, kind: str, name: str | None = None) -> None:
        manager = self.manager(kind, name)
        lines = self._lines()
        if self.flag("structured"):
            self.reply({"entries": await manager.get_structured_logs(lines)})
        else:
            self.reply({"lines": await manager.get_logs(lines)})

    @web.authenticated
    @authorized
    async def delete(self, kind: str, name: str | None = None) -> None:
        await self.manager(kind, name).clear_logs()
        self.reply_nothing()

    def _lines(self) -> int | None:
        text = self.get_query_argument("lines", "100")
        if text == "all":
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise InvalidRequestError("lines: must be a number that is not negative, or all.", {"field": "lines"})
        return int(text)


class OrchestratorHandler(GenaiHandler):
    """What image generation means for the LLM. `?wait=reload` answers when an LLM that stepped aside is back."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        wait = self.get_query_argument("wait", None)
        if wait not in (None, "reload"):
            raise InvalidRequestError("wait: can only be reload.", {"field": "wait"})
        orchestrator = self.runtime.orchestrator
        if wait:
            await self.while_connected(orchestrator.wait_for_reload())
        reply: dict[str, Any] = {"wouldNeedOffload": await orchestrator.would_need_offload()}
        if state := orchestrator.get_saved_state():
            reply["savedState"] = state
        self.reply(reply)


class SavedStateHandler(GenaiHandler):
    @web.authenticated
    @authorized
    async def delete(self) -> None:
        self.runtime.orchestrator.clear_saved_state()
        self.reply_nothing()
