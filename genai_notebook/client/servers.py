"""The server managers, over HTTP: same methods, types and errors as the local ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

from genai_notebook.client.live import LiveState, path_of
from genai_notebook.client.transport import Connection, Reply, segment
from genai_notebook.core.callbacks import Callback, deliver_here
from genai_notebook.core.schema import (
    DiffusionServerConfig,
    DiffusionServerInfo,
    GenerationState,
    ImageBatchResult,
    ImageGenerationConfig,
    ImageGenerationProgress,
    ImageGenerationResult,
    LlamaServerConfig,
    SavedLLMState,
    ServerInfo,
    ServerStatus,
)
from genai_notebook.core.servers.manager import line_count
from genai_notebook.core.validation import from_call, from_keywords
from genai_notebook.core.waiting import within
from genai_notebook.errors import GenaiNotebookError, ServerError, error_from_wire

Info = TypeVar("Info", bound=ServerInfo)

#: Seconds between looks at a generation: while its events arrive, and while the event stream is down.
LOOK_CONNECTED, LOOK_ALONE = 2.0, 0.075
#: Seconds that a cancelled start or generation gets for winding down on the server.
WIND_DOWN = 4.0


class RemoteServerManager(Generic[Info]):
    """The base of both. `name` as in the Runtime: llama, diffusion, or a further LLM's."""

    #: Known where the server is only.
    is_fetching = False

    def __init__(self, name: str, connection: Connection, live: LiveState) -> None:
        self._name = name
        self._path = path_of(name)
        self._connection = connection
        self._live = live

    @property
    def name(self) -> str:
        return self._name

    async def stop(self) -> None:
        """As the local manager's."""
        self._learn(await self._connection.request("POST", f"{self._path}/stop", timeout=None))

    async def restart(self) -> Info:
        """As the local manager's."""
        return self._learn(await self._connection.request("POST", f"{self._path}/restart", timeout=None))

    def get_status(self) -> ServerStatus:
        """The state as the server's events tell it; asked for over HTTP only while those are down."""
        info = self._live.info(self._name, complete=False) or self._ask_now()
        return info.status

    def get_info(self) -> Info:
        """A snapshot; costs nothing while the server's events arrive."""
        return self._finished(cast("Info", self._live.info(self._name) or self._ask_now()))

    async def is_healthy(self) -> bool:
        """Ask the engine, through the server, whether it is well."""
        reply = await self._connection.request("GET", f"{self._path}/health")
        return reply.part("healthy", bool)

    async def get_logs(self, lines: int | None = 100) -> list[str]:
        """As the local manager's."""
        reply = await self._connection.request("GET", f"{self._path}/logs", query={"lines": _line_count(lines)})
        return reply.part("lines", list[str])

    async def get_structured_logs(self, lines: int | None = 100) -> list[dict[str, Any]]:
        """As the local manager's."""
        query = {"lines": _line_count(lines), "structured": "true"}
        reply = await self._connection.request("GET", f"{self._path}/logs", query=query)
        return reply.part("entries", list[dict[str, Any]])

    async def clear_logs(self) -> None:
        await self._connection.request("DELETE", f"{self._path}/logs")

    def on(self, event: str, listener: Callback) -> None:
        """Call `listener` at every `event`; events and arguments as the local manager's."""
        self._live.events(self._name).on(event, listener)

    def once(self, event: str, listener: Callback) -> None:
        """Call `listener` at the next `event` only."""
        self._live.events(self._name).once(event, listener)

    def off(self, event: str, listener: Callback) -> None:
        """Undo one `on` or `once`."""
        self._live.events(self._name).off(event, listener)

    async def _start(self, config: msgspec.Struct) -> Info:
        try:
            reply = await self._connection.request("POST", f"{self._path}/start", body=config, timeout=None)
        except asyncio.CancelledError:
            # The server notices that its caller has gone, and undoes the start. After that the next start is free.
            with contextlib.suppress(asyncio.TimeoutError, GenaiNotebookError):
                await within(WIND_DOWN, asyncio.shield(self._until_settled()))
            raise
        return self._learn(reply)

    async def _until_settled(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            info = self._learn(await self._connection.request("GET", self._path))
            if info.status not in ("starting", "stopping"):
                return

    def _ask_now(self) -> Info:
        return self._learn(self._connection.request_now("GET", self._path))

    def _learn(self, reply: Reply) -> Info:
        return self._finished(cast("Info", self._live.learn(self._name, reply)))

    def _finished(self, info: Info) -> Info:
        """`info` with what only this side knows."""
        return info


class RemoteLlamaServerManager(RemoteServerManager[ServerInfo]):
    """The LLM."""

    async def start(
        self,
        config: Any = None,
        *,
        model_id: str = ...,  # type: ignore[assignment]
        port: int | Literal["auto"] = 8080,
        threads: int | None = None,
        context_size: int | None = None,
        gpu_layers: int | None = None,
        parallel_requests: int = 4,
        flash_attention: bool | Literal["on", "off", "auto"] = "auto",
        force_validation: bool = False,
        api_key: str | Literal[False] | None = None,
        **options: Any,
    ) -> ServerInfo:
        """Load a model in the server's process family; arguments and errors as the local manager's."""
        keywords = {
            "model_id": model_id,
            "port": port,
            "threads": threads,
            "context_size": context_size,
            "gpu_layers": gpu_layers,
            "parallel_requests": parallel_requests,
            "flash_attention": flash_attention,
            "force_validation": force_validation,
            "api_key": api_key,
            **options,
        }
        return await self._start(from_call(LlamaServerConfig, config, keywords))

    #: Wishes are counted where the server is, and so are an offload's stop and restart made.
    wishes = 0

    async def step_aside(self) -> bool:
        """As `stop`."""
        await self.stop()
        return True

    async def resume(self) -> ServerInfo:
        """As `restart`."""
        return await self.restart()


class RemoteDiffusionServerManager(RemoteServerManager[DiffusionServerInfo]):
    """Image generation."""

    async def start(
        self,
        config: Any = None,
        *,
        model_id: str = ...,  # type: ignore[assignment]
        port: int | Literal["auto"] | None = None,
        threads: int | None = None,
        gpu_layers: int | None = None,
        vram_budget: int | None = None,
        force_validation: bool = False,
        api_key: str | Literal[False] | None = None,
        **options: Any,
    ) -> DiffusionServerInfo:
        """Prepare image generation; arguments and errors as the local manager's."""
        keywords = {
            "model_id": model_id,
            "port": port,
            "threads": threads,
            "gpu_layers": gpu_layers,
            "vram_budget": vram_budget,
            "force_validation": force_validation,
            "api_key": api_key,
            **options,
        }
        return await self._start(from_call(DiffusionServerConfig, config, keywords))

    async def generate_image(
        self,
        config: Any = None,
        *,
        prompt: str = ...,  # type: ignore[assignment]
        on_progress: Callable[[int, int, str, float | None], Any] | None = None,
        on_start: Callable[[str], Any] | None = None,
        queue: bool = False,
        **fields: Any,
    ) -> ImageGenerationResult | ImageBatchResult:
        """Paint, and wait for the result; arguments and errors as the local manager's. Cancelling ends the work."""
        checked = from_keywords(ImageGenerationConfig, config, {"prompt": prompt, **fields})
        report = deliver_here(on_progress) if on_progress else None
        started = deliver_here(on_start) if on_start else None
        submitting = asyncio.ensure_future(self._submit(checked, queue))
        try:
            id = await asyncio.shield(submitting)
            if started:
                started(id)
            state = await self._follow(id, report)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.TimeoutError, GenaiNotebookError):
                await within(WIND_DOWN, asyncio.shield(self._abandon(submitting)))
            raise
        return result_of(state)

    async def cancel_image_generation(self, id: str | None = None) -> bool:
        """As the local manager's; None: all of them."""
        if id is None:
            reply = await self._connection.request("DELETE", "v1/images/generations")
            return reply.part("cancelled", bool)
        try:
            await self._connection.request("DELETE", f"v1/images/generations/{segment(id)}")
        except ServerError as error:
            if error.code in ("NOT_FOUND", "ALREADY_TERMINAL"):
                return False
            raise
        return True

    def get_generation(self, id: str) -> GenerationState | None:
        """One generation with its configuration, progress and result; None where no such one is kept."""
        path = f"v1/images/generations/{segment(id)}"
        try:
            reply = self._connection.request_now("GET", path, query={"full": "true"})
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return None
            raise
        return reply.as_a(GenerationState)

    async def _submit(self, config: ImageGenerationConfig, queue: bool) -> str:
        query = {"queue": "true"} if queue else None
        reply = await self._connection.request("POST", "v1/images/generations", body=config, query=query)
        return reply.part("id", str)

    async def _abandon(self, submitting: asyncio.Task[str]) -> None:
        """End a generation whose caller has been cancelled, though its id may still be on the way."""
        await self.cancel_image_generation(await submitting)

    async def _follow(self, id: str, report: Callback | None) -> GenerationState:
        """Wait until a generation has ended. Progress comes with the events, and by looking when there are none."""
        progress = _ProgressReports(report)
        path = f"v1/images/generations/{segment(id)}"
        with self._live.news_of(id) as news:
            while True:
                reply = await self._connection.request("GET", path, query={"full": "true"})
                state = reply.as_a(GenerationState)
                progress.tell(state.progress)
                if state.status in ("complete", "error"):
                    return state
                await self._next_news(news, progress)

    async def _next_news(self, news: asyncio.Queue[dict[str, Any]], progress: _ProgressReports) -> None:
        """Pass progress on until something else happens, or nothing does for a while."""
        while True:
            wait = LOOK_CONNECTED if self._live.connected else LOOK_ALONE
            try:
                event = await within(wait, news.get())
            except asyncio.TimeoutError:
                return
            if event.get("progress"):
                progress.tell(msgspec.convert(event["progress"], ImageGenerationProgress))
            if event.get("status") in ("complete", "error"):
                return

    def _finished(self, info: DiffusionServerInfo) -> DiffusionServerInfo:
        if info.port is None and info.url is not None:  # mounted: the URL that reaches the server from here
            return msgspec.structs.replace(info, url=f"{self._connection.url}genai")
        return info


class RemoteResourceOrchestrator:
    """What image generation means for the LLM, asked from the server."""

    def __init__(self, connection: Connection, diffusion_server: RemoteDiffusionServerManager) -> None:
        self._connection = connection
        self._diffusion_server = diffusion_server

    async def orchestrate_image_generation(
        self, config: Any = None, **fields: Any
    ) -> ImageGenerationResult | ImageBatchResult:
        """As `generate_image`: on the server every generation is orchestrated."""
        return await self._diffusion_server.generate_image(config, **fields)

    async def would_need_offload(self) -> bool:
        reply = await self._connection.request("GET", "orchestrator")
        return reply.part("wouldNeedOffload", bool)

    def get_saved_state(self) -> SavedLLMState | None:
        reply = self._connection.request_now("GET", "orchestrator")
        return reply.part("savedState", SavedLLMState) if "savedState" in reply.as_a(dict[str, Any]) else None

    def clear_saved_state(self) -> None:
        self._connection.request_now("DELETE", "orchestrator/saved-state")

    async def wait_for_reload(self) -> None:
        await self._connection.request("GET", "orchestrator", query={"wait": "reload"}, timeout=None)


class _ProgressReports:
    """Passes progress on to a callback, never the same twice."""

    def __init__(self, report: Callback | None) -> None:
        self._report = report
        self._last: ImageGenerationProgress | None = None

    def tell(self, progress: ImageGenerationProgress | None) -> None:
        if self._report is None or progress is None or progress == self._last:
            return
        if self._last and (progress.percentage or 0) < (self._last.percentage or 0):
            return  # an answer overtaken by events
        self._last = progress
        self._report(progress.current_step, progress.total_steps, progress.stage, progress.percentage)


def result_of(state: GenerationState) -> ImageGenerationResult | ImageBatchResult:
    """The pictures of a generation that has ended.

    Raises:
        GenaiNotebookError: what ended it otherwise.
    """
    if state.error is not None:
        raise error_from_wire(msgspec.to_builtins(state.error))
    if state.result is None:
        raise ServerError("The generation ended without a result.", {"id": state.id}, code="BACKEND_ERROR")
    images = [
        ImageGenerationResult(
            image=image.image,
            format="png",
            time_taken=state.result.time_taken,
            seed=image.seed,
            width=image.width,
            height=image.height,
            id=state.id,
        )
        for image in state.result.images
    ]
    if len(images) == 1:
        return images[0]
    return ImageBatchResult(images=images, time_taken=state.result.time_taken, id=state.id)


def _line_count(lines: Any) -> str:
    count = line_count(lines)
    return "all" if count is None else str(min(count, 999_999_999))
