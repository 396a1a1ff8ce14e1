"""The model store and its downloads."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from msgspec import UNSET, Struct
from tornado import web

from genai_notebook.core.schema import DownloadConfig, MetadataStrategy, ModelType
from genai_notebook.errors import GenaiNotebookError, error_to_wire
from genai_notebook.server.base import GenaiHandler

_FINISHED = frozenset({"complete", "error", "cancelled"})


class Waiters:
    """How many clients have asked for each download: who stops waiting must not end it for the others."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, job: str) -> None:
        self._counts[job] = self._counts.get(job, 0) + 1

    def release(self, job: str) -> bool:
        """One waits no longer; True if that was the last."""
        left = self._counts.pop(job, 1) - 1
        if left > 0:
            self._counts[job] = left
        return left <= 0


class RegisterRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    path: str
    name: str | None = None
    type: ModelType = "llm"


class MetadataRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    source: MetadataStrategy = "local-remote"


class ModelsHandler(GenaiHandler):
    """The list; and the start of a download, which goes on by itself."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply(await self.runtime.model_manager.inventory(self.get_query_argument("type", None)))

    @web.authenticated
    @authorized
    async def post(self) -> None:
        config = self.body_as(DownloadConfig)
        job = self.runtime.model_manager.start_download(config)
        self.house.waiters.add(job.id)
        self.reply(job, 202)


class ModelHandler(GenaiHandler):
    """One model. `register` and `check-model` below are POST routes, and may be models' ids all the same."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, id: str) -> None:
        self.reply(await self.runtime.model_manager.get_model_info(id))

    @web.authenticated
    @authorized
    async def delete(self, id: str) -> None:
        await self.runtime.model_manager.delete_model(id)
        self.reply_nothing()


class RegisterHandler(ModelHandler):
    """A file that is here already becomes a model, where it lies."""

    @web.authenticated
    @authorized
    async def post(self, id: str) -> None:
        asked = self.body_as(RegisterRequest)
        model = await self.runtime.model_manager.register_model(path=asked.path, name=asked.name, type=asked.type)
        self.reply(model, 201)


class CheckModelHandler(ModelHandler):
    """The image model with random weights, made on the spot: for machines that reach no real one."""

    @web.authenticated
    @authorized
    async def post(self, id: str) -> None:
        self.no_body()
        from genai_notebook.core.models.check_model import CHECK_MODEL_NAME, write_check_model

        model = await self.runtime.model_manager.create_model(
            name=CHECK_MODEL_NAME, file="check-model.gguf", type="diffusion", write=write_check_model
        )
        self.reply(model, 201)


class VerifyHandler(GenaiHandler):
    """Hash the files again. The work ends when the caller goes away."""

    @web.authenticated
    @authorized
    async def post(self, id: str) -> None:
        self.no_body()
        self.reply({"valid": await self.while_connected(self.runtime.model_manager.verify_model(id))})


class MetadataHandler(GenaiHandler):
    """Read the header again."""

    @web.authenticated
    @authorized
    async def post(self, id: str) -> None:
        asked = self.body_as(MetadataRequest)
        self.reply(await self.runtime.model_manager.update_model_metadata(id, asked.source))


class DownloadsHandler(GenaiHandler):
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply({"downloads": self.runtime.model_manager.list_downloads()})

    @web.authenticated
    @authorized
    async def delete(self) -> None:
        await self.runtime.model_manager.cancel_download()
        self.reply_nothing()


class DownloadHandler(GenaiHandler):
    """One download. Finished, it comes with its model, or with the typed error that ended it.

    `DELETE …?release=true` only says that this caller no longer waits: the download ends when nobody does.
    """

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, job: str) -> None:
        state = self.runtime.model_manager.job_state(job)
        reply = {"job": state, "model": UNSET, "failure": UNSET}
        if state.status in _FINISHED:
            try:
                reply["model"] = await self.runtime.model_manager.wait_download(job)
            except GenaiNotebookError as error:
                reply["failure"] = error_to_wire(error)
        self.reply({name: value for name, value in reply.items() if value is not UNSET})

    @web.authenticated
    @authorized
    async def delete(self, job: str) -> None:
        self.runtime.model_manager.job_state(job)
        if not self.flag("release") or self.house.waiters.release(job):
            await self.runtime.model_manager.cancel_download(job)
        self.reply_nothing()


class SearchHandler(GenaiHandler):
    """Repositories on Hugging Face, and which of their files fit this machine."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        query = self.get_query_argument("query", "")
        limit = self.number("limit", 8)
        found = await self.while_connected(self.runtime.model_manager.search_models(query, limit))
        self.reply({"repositories": found})
