"""The engine programs: which there are, and which is used."""

from __future__ import annotations

from typing import Any, Literal

from jupyter_server.auth.decorator import authorized
from msgspec import Struct
from tornado import web

from genai_notebook.server.base import GenaiHandler


class EngineRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which engine: its kind, and its name or variant."""

    kind: Literal["llama", "diffusion"]
    name: str | None = None


class EnginesHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply({"engines": await self.runtime.engine_manager.list()})


class EngineActionHandler(GenaiHandler):
    """use, test, install, remove. A caller that goes away ends what it asked for."""

    @web.authenticated
    @authorized
    async def post(self, action: str) -> None:
        asked = self.body_as(EngineRequest)
        work: Any = getattr(self.runtime.engine_manager, action)
        self.reply(await self.while_connected(work(kind=asked.kind, name=asked.name)))
