"""What owns what, and what the machine can hold."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from jupyter_server.auth.decorator import authorized
from msgspec import Struct
from tornado import web

from genai_notebook._version import __version__
from genai_notebook.core.schema import ModelInfo
from genai_notebook.server.base import GenaiHandler
from genai_notebook.server.replies import NotFoundError
from genai_notebook.server.servers import public_infos


class CheckRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`model`: an id, or a whole ModelInfo."""

    model: str | ModelInfo
    check_total_memory: bool = False


class ConfigRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    model: str | ModelInfo


class EstimateRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    model: str | ModelInfo
    context_size: int = 4096
    parallel_requests: int = 1
    gpu_layers: int | None = None
    kv_unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch_size: int = 512
    flash_attention: bool = True


def camel(name: str) -> str:
    """`context_size` → `contextSize`."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


class RootHandler(GenaiHandler):
    """`genai/`: the answer by which a client knows that this server has the extension."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(
            {
                "name": "genai-notebook",
                "version": __version__,
                "owner": self.runtime.owner,
                "pid": os.getpid(),
                "servers": public_infos(self.runtime),
            }
        )


class SystemHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(await self.runtime.system_info.detect(self.flag("force")))


class MemoryHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(await asyncio.to_thread(self.runtime.system_info.get_memory_info))


class UseHandler(GenaiHandler):
    """Who holds memory right now. `kernel`: pid of the kernel that asks; 0: none does."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(await self.runtime.system_info.memory_use(self.number("kernel", 0)))


class CheckHandler(GenaiHandler):
    """Whether a model fits this machine."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body_as(CheckRequest)
        self.reply(await self.runtime.system_info.can_run_model(asked.model, asked.check_total_memory))


class ConfigHandler(GenaiHandler):
    """The keywords for `llama/start` that suit a model here."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body_as(ConfigRequest)
        config: dict[str, Any] = await self.runtime.system_info.get_optimal_config(asked.model)
        self.reply({camel(name): value for name, value in config.items()})


class EstimateHandler(GenaiHandler):
    """The memory that a model takes, part by part."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body_as(EstimateRequest)
        options = {name: getattr(asked, name) for name in asked.__struct_fields__ if name != "model"}
        self.reply(await self.runtime.system_info.estimate_memory(asked.model, **options))


class UnknownRouteHandler(GenaiHandler):
    """Whatever else is asked for below `genai/`: an error in the shape of all others, for those who may ask."""

    _track_activity = False

    def refuse(self) -> None:
        raise NotFoundError(f"There is no route {self.request.path}.")

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.refuse()

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.refuse()

    @web.authenticated
    @authorized
    async def put(self) -> None:
        self.refuse()

    @web.authenticated
    @authorized
    async def patch(self) -> None:
        self.refuse()

    @web.authenticated
    @authorized
    async def delete(self) -> None:
        self.refuse()
