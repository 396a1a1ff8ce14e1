"""The model store, over HTTP: same methods, types and errors as the local manager."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from genai_notebook.client.live import LiveState
from genai_notebook.client.transport import Connection, segment
from genai_notebook.core.callbacks import Callback, deliver_here
from genai_notebook.core.schema import (
    DownloadConfig,
    DownloadJob,
    FoundRepo,
    Inventory,
    MetadataStrategy,
    ModelInfo,
)
from genai_notebook.core.system.estimate import architecture_of, context_length_of, layer_count_of
from genai_notebook.core.validation import from_call, from_keywords
from genai_notebook.core.waiting import within
from genai_notebook.errors import (
    GenaiNotebookError,
    InvalidRequestError,
    ModelNotFoundError,
    NotYetError,
    error_from_wire,
)

#: Seconds between looks at a download: while its events arrive, and while the event stream is down.
LOOK_CONNECTED, LOOK_ALONE = 2.0, 0.1
#: Seconds that a cancelled download gets for winding down on the server.
WIND_DOWN = 4.0
_FINISHED = frozenset({"complete", "error", "cancelled"})


class RemoteModelManager:
    """The models of the server's store."""

    def __init__(self, connection: Connection, live: LiveState) -> None:
        self._connection = connection
        self._live = live

    async def list_models(self, type: str | None = None) -> list[ModelInfo]:
        """As the local manager's."""
        return (await self.inventory(type)).models

    async def inventory(self, type: str | None = None) -> Inventory:
        """As the local manager's."""
        reply = await self._connection.request("GET", "models", query={"type": type} if type is not None else None)
        return reply.as_a(Inventory)

    async def search_models(self, query: str, limit: int = 8) -> list[FoundRepo]:
        """As the local manager's; what fits is said for the server's machine."""
        asked = {"query": query, "limit": str(limit)}
        reply = await self._connection.request("GET", "search", query=asked, timeout=None)
        return reply.part("repositories", list[FoundRepo])

    async def download_model(
        self,
        config: Any = None,
        *,
        source: str = ...,  # type: ignore[assignment]
        url: str | None = None,
        repo: str | None = None,
        file: str | None = None,
        revision: str | None = None,
        package: str | None = None,
        name: str | None = None,
        type: str = "llm",
        checksum: str | None = None,
        components: Any = None,
        on_progress: Callable[[int, int | None], Any] | None = None,
    ) -> ModelInfo:
        """Let the server fetch a model, and wait for it; arguments and errors as the local manager's.

        Cancelling the wait cancels the download, unless somebody else waits for it too.
        """
        keywords = {
            "source": source,
            "url": url,
            "repo": repo,
            "file": file,
            "revision": revision,
            "package": package,
            "name": name,
            "type": type,
            "checksum": checksum,
            "components": components,
        }
        checked = from_call(DownloadConfig, config, keywords)
        report = deliver_here(on_progress) if on_progress else None
        submitting = asyncio.ensure_future(self._submit(checked))
        try:
            job = await asyncio.shield(submitting)
            return await self._follow(job.id, report)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.TimeoutError, GenaiNotebookError):
                await within(WIND_DOWN, asyncio.shield(self._abandon(submitting)))
            raise

    def start_download(self, config: Any, on_progress: Callback | None = None) -> DownloadJob:
        """Let the server fetch a model, without waiting for it."""
        checked = from_keywords(DownloadConfig, config)
        job = self._connection.request_now("POST", "models", body=checked).as_a(DownloadJob)
        self._live.learn_job(job)
        if on_progress is not None:
            self._live.spawn(self._follow(job.id, deliver_here(on_progress)))
        return job

    def job_state(self, job_id: str) -> DownloadJob:
        """As the local manager's."""
        reply = self._connection.request_now("GET", f"downloads/{segment(job_id)}")
        return reply.part("job", DownloadJob)

    async def wait_download(self, job_id: str) -> ModelInfo:
        """Wait for a download that was started before; errors as `download_model`."""
        return await self._follow(job_id, None)

    async def register_model(self, *, path: str, name: str | None = None, type: str = "llm") -> ModelInfo:
        """As the local manager's; a relative path is taken from this process's folder, not the server's."""
        if not isinstance(path, (str, Path)) or not str(path) or "\0" in str(path):
            raise InvalidRequestError("path: must be the path of a file.", {"field": "path"})
        body = {"path": str(Path(path).expanduser().absolute()), "name": name, "type": type}
        reply = await self._connection.request("POST", "models/register", body=body)
        return reply.as_a(ModelInfo)

    async def delete_model(self, id: str) -> None:
        """As the local manager's."""
        await self._connection.request("DELETE", _path(id))

    async def get_model_info(self, id: str) -> ModelInfo:
        """As the local manager's."""
        return (await self._connection.request("GET", _path(id))).as_a(ModelInfo)

    async def verify_model(self, id: str) -> bool:
        """As the local manager's."""
        reply = await self._connection.request("POST", f"{_path(id)}/verify", timeout=None)
        return reply.part("valid", bool)

    async def cancel_download(self, job_id: str | None = None) -> None:
        """As the local manager's."""
        path = "downloads" if job_id is None else f"downloads/{segment(job_id)}"
        await self._connection.request("DELETE", path)

    def list_downloads(self) -> list[DownloadJob]:
        """As the server's events tell; asked for over HTTP only while those are down."""
        jobs = self._live.jobs()
        if jobs is None:
            reply = self._connection.request_now("GET", "downloads")
            jobs = reply.part("downloads", list[DownloadJob])
        return jobs

    async def update_model_metadata(self, id: str, source: MetadataStrategy = "local-remote") -> ModelInfo:
        """As the local manager's."""
        reply = await self._connection.request("POST", f"{_path(id)}/metadata", body={"source": source}, timeout=None)
        return reply.as_a(ModelInfo)

    async def create_model(self, *, name: str, file: str, type: str, write: Callable[..., object]) -> ModelInfo:
        """The check model, made on the server; functions that write anything else do not travel.

        Raises:
            NotYetError: another model than the check model.
        """
        from genai_notebook.core.models.check_model import CHECK_MODEL_NAME

        if name != CHECK_MODEL_NAME:
            raise NotYetError("Making models through a notebook server", hint="Use register_model(path=…).")
        return (await self._connection.request("POST", "models/check-model", timeout=None)).as_a(ModelInfo)

    async def get_model_layer_count(self, id: str) -> int:
        """As the local manager's."""
        return layer_count_of(await self.get_model_info(id))

    async def get_model_context_length(self, id: str) -> int:
        """As the local manager's."""
        return context_length_of(await self.get_model_info(id))

    async def get_model_architecture(self, id: str) -> str:
        """As the local manager's."""
        return architecture_of(await self.get_model_info(id))

    async def _submit(self, config: DownloadConfig) -> DownloadJob:
        reply = await self._connection.request("POST", "models", body=config)
        job = reply.as_a(DownloadJob)
        self._live.learn_job(job)
        return job

    async def _abandon(self, submitting: asyncio.Task[DownloadJob]) -> None:
        """Say that this caller no longer waits."""
        job = await submitting
        await self._connection.request("DELETE", f"downloads/{job.id}", query={"release": "true"})

    async def _follow(self, job_id: str, report: Callback | None) -> ModelInfo:
        """Wait until a download has ended. Progress comes with the events, and by looking when there are none."""
        path = f"downloads/{segment(job_id)}"
        with self._live.news_of(job_id) as news:
            while True:
                reply = await self._connection.request("GET", path)
                job, told = reply.part("job", DownloadJob), reply.as_a(dict[str, Any])
                if report and (job.downloaded or job.total):
                    report(job.downloaded, job.total)
                if "model" in told:
                    return reply.part("model", ModelInfo)
                if "failure" in told:
                    raise error_from_wire(told["failure"])
                await self._next_news(news, report)

    async def _next_news(self, news: asyncio.Queue[dict[str, Any]], report: Callback | None) -> None:
        """Pass progress on until the download has ended, or nothing happens for a while."""
        while True:
            try:
                event = await within(LOOK_CONNECTED if self._live.connected else LOOK_ALONE, news.get())
            except asyncio.TimeoutError:
                return
            job = msgspec.convert(event, DownloadJob)
            if job.status in _FINISHED:
                return
            if report:
                report(job.downloaded, job.total)


def _path(id: str) -> str:
    if not id:
        raise ModelNotFoundError(id)
    return f"models/{segment(id)}"
