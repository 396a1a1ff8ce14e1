"""Image generation over HTTP, in the reference's JSON.

The functions are the routes; the classes below them put Jupyter's authentication in front. `standalone` puts the same
functions behind a port of their own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado import web

from genai_notebook.core.schema import GenerationFailure, GenerationState, ImageGenerationConfig
from genai_notebook.errors import NotYetError, ServerError
from genai_notebook.server.base import GenaiHandler
from genai_notebook.server.replies import NotFoundError, encode

_TERMINAL = frozenset({"complete", "error"})


async def submit(manager: Any, config: ImageGenerationConfig, queue: bool) -> dict[str, Any]:
    """Accept a generation; it goes on by itself.

    Raises:
        ServerError: not running, or busy and `queue` is False.
    """
    state: GenerationState = await manager.submit_generation(config, queue=queue)
    return {"id": state.id, "status": state.status, "createdAt": state.created_at}


async def state_json(manager: Any, id: str, full: bool = False) -> bytes:
    """The JSON of one generation, exactly the reference's; `full`: with the request, and all that is known of an error.

    Raises:
        NotFoundError: no such id, or its result has expired.
    """
    state = _state(manager, id)
    if not full:
        error = GenerationFailure(message=state.error.message, code=state.error.code) if state.error else None
        state = msgspec.structs.replace(state, config=None, error=error)
    if state.result is None:
        return encode(state)
    return await asyncio.to_thread(encode, state)  # base64 of megabytes


async def cancel(manager: Any, id: str) -> dict[str, Any]:
    """End a generation for good.

    Raises:
        NotFoundError: no such id.
        ServerError: ALREADY_TERMINAL, it had ended before.
    """
    if _state(manager, id).status in _TERMINAL or not await manager.cancel_image_generation(id):
        raise ServerError("This generation has already ended.", {"id": id}, code="ALREADY_TERMINAL")
    return {"id": id, "status": "cancelled"}


def health(manager: Any) -> dict[str, Any]:
    """`{"status": "ok", "busy": …}`.

    Raises:
        ServerError: SERVER_NOT_RUNNING.
    """
    info = manager.get_info()
    if info.status != "running":
        raise ServerError(
            "Image generation is not running.",
            {"status": info.status},
            code="SERVER_NOT_RUNNING",
            hint="Start it: %genai start MODEL, or POST genai/diffusion/start.",
        )
    return {"status": "ok", "busy": info.busy}


def _state(manager: Any, id: str) -> GenerationState:
    state: GenerationState | None = manager.get_generation(id)
    if state is None:
        raise NotFoundError("Generation not found", details={"id": id})
    return state


class GenerationsHandler(GenaiHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        config = self.body_as(ImageGenerationConfig)
        self.reply(await submit(self.runtime.diffusion_server, config, self.flag("queue")), 201)

    @web.authenticated
    @authorized
    async def delete(self) -> None:
        self.no_body()
        self.reply({"cancelled": await self.runtime.diffusion_server.cancel_image_generation()})


class GenerationHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, id: str) -> None:
        self.finish(await state_json(self.runtime.diffusion_server, id, self.flag("full")))

    @web.authenticated
    @authorized
    async def delete(self, id: str) -> None:
        self.reply(await cancel(self.runtime.diffusion_server, id))


class ImageHealthHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(health(self.runtime.diffusion_server))


class GalleryHandler(GenaiHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        raise NotYetError("The gallery")
