"""Image generation: sd-server, or anything that takes its flags and speaks its job API.

`start` checks model and engine and opens the routes; the model itself is loaded by the first image and stays in memory
for the next ones, until it has been idle for a while or somebody else needs the room.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

import msgspec

from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.engines.engine import Engine
from genai_notebook.core.engines.load_report import Footprint, LoadReport
from genai_notebook.core.engines.session import EngineSession, stop_quietly
from genai_notebook.core.engines.trial import READY as READY_PATHS
from genai_notebook.core.engines.trial import Trial
from genai_notebook.core.processes.ports import LOOPBACK, free_port, require_free
from genai_notebook.core.schema import (
    DiffusionServerConfig,
    DiffusionServerInfo,
    GenerationState,
    ImageBatchResult,
    ImageGenerationConfig,
    ImageGenerationResult,
    ModelInfo,
)
from genai_notebook.core.servers.footprints import Footprints, footprint_key
from genai_notebook.core.servers.generations import GenerationRegistry
from genai_notebook.core.servers.idle import IdleClock
from genai_notebook.core.servers.jobs import ImageJob
from genai_notebook.core.servers.manager import Parts, ServerManager, insufficient
from genai_notebook.core.servers.progress import Calibration
from genai_notebook.core.servers.sd_flags import arguments, asks_for_debug, check, memory_flags
from genai_notebook.core.utilities import now_iso
from genai_notebook.core.validation import from_call, from_keywords
from genai_notebook.errors import InvalidRequestError, ServerError

READY = READY_PATHS["diffusion"]
DEFAULT_PORT = 8081
#: Seconds without an image after which the resident engine gives its memory back.
IDLE_LIMIT = 300.0


class Listener(Protocol):
    """An open stand-alone image port."""

    port: int

    async def close(self) -> None: ...


#: Opens the image routes on a port of their own: (manager, port, key or None). Injected: core knows no tornado.
Listen = Callable[["DiffusionServerManager", int, "str | None"], Awaitable[Listener]]


class Gate(Protocol):
    """Who makes room before an image and tidies up after it: the orchestrator."""

    async def before_image(self) -> None: ...

    async def evict_llm(self) -> bool: ...

    def after_image(self) -> None: ...


class DiffusionServerManager(ServerManager[DiffusionServerInfo]):
    """Starts, supervises and stops image generation; every image of every surface passes through here.

    Args:
        parts: what it works with; by default the process's own.
        listen: opens the stand-alone port; without it `port` must be None.
        mounted_url: where a notebook server serves the image routes; with it no port is opened unless asked.
    """

    _title = "Image generation"

    def __init__(self, parts: Parts | None = None, *, listen: Listen | None = None) -> None:
        super().__init__("diffusion", parts)
        self.gate: Gate | None = None
        self.mounted_url: str | None = None
        self.generations = GenerationRegistry()
        self._listen = listen
        self._listener: Listener | None = None
        self._port: int | None = None
        self._closing = asyncio.Lock()
        self._config: DiffusionServerConfig | None = None
        self._model: ModelInfo | None = None
        self._engine: Engine | None = None
        self._api_key: str | None = None
        self._started_at: str | None = None
        self._calibration = Calibration()
        self._jobs: dict[str, ImageJob] = {}
        self._turn = asyncio.Lock()
        self._idle = IdleClock(IDLE_LIMIT, lambda: self._spawn(self._end_idle()))
        self._line_listener: Callable[[str], None] | None = None
        self._report = LoadReport()
        self._footprints = Footprints(self._parts.settings.cache)

    # ---- start and stop ----

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
        """Make images of a model available. The model is loaded by the first image.

        Args:
            config: a DiffusionServerConfig or dict instead of keywords; keywords on top of it win.
            model_id: a model of type 'diffusion' in the store.
            port: None: under Jupyter the routes are mounted in the notebook server, elsewhere 8081; "auto" for any
                free port.
            threads: CPU threads; None: worked out from the cores.
            gpu_layers: 0 keeps everything on the CPU; other numbers are llama.cpp's idea and are refused.
            vram_budget: MB of VRAM the engine may use.
            force_validation: test the engine again although it passed before.
            api_key: the stand-alone port's key; None draws a random one, False opens it without.
            options: extra_args (a list of further flags).

        Raises:
            GenaiNotebookError: the same kinds as `llama_server.start`.
        """
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
        checked = check(from_call(DiffusionServerConfig, config, keywords))
        key = None if checked.api_key is False else checked.api_key or secrets.token_urlsafe(24)
        return await self._launch(checked, key)

    async def restart(self) -> DiffusionServerInfo:
        """Stop, and start again with the same configuration, port and API key.

        Raises:
            ServerError: it was never started.
            GenaiNotebookError: as `start`.
        """
        config, key = self._config, self._api_key
        if config is None:
            raise ServerError("Image generation was never started.", code="SERVER_NOT_RUNNING", hint="%genai start")
        again = msgspec.structs.replace(config, port=self._port or config.port)
        await self.stop()
        return await self._launch(again, key, stay=True)

    async def _launch(
        self, config: DiffusionServerConfig, key: str | None, *, stay: bool = False
    ) -> DiffusionServerInfo:
        # That an engine is to be tested again holds for this start, not for every restart.
        kept = msgspec.structs.replace(config, force_validation=False)

        def asked() -> None:
            self._config, self._api_key, self._engine = kept, key, None

        return await self._run_start(lambda: self._start(config, key, stay), asked)

    async def _start(self, config: DiffusionServerConfig, key: str | None, stay: bool) -> DiffusionServerInfo:
        await self._close()  # what a crash has left
        model = await self._find_model(config.model_id, "diffusion")
        # Against all there is, not what is free now: the model is loaded later, and the LLM may give way for it.
        if not (await self._parts.system.can_run_model(model, check_total_memory=True)).possible:
            needs = await self._parts.system.estimate_memory(model)
            total = self._parts.system.get_memory_info().total
            raise insufficient(model, "RAM", needs.ram or needs.vram, total, "Use a smaller or more quantized model.")
        # Tried at once where there is room for the model right now, else by the first image, when there is.
        fits = (await self._parts.system.can_run_model(model)).possible
        trial = self.trial(config, model) if fits and not self._session else None
        self._engine = await self._find_engine("diffusion", trial, force=config.force_validation, stay=stay)
        self._model = model
        self._listener = await self._open_port(config, key)
        self._port = self._listener.port if self._listener else None
        self._started_at = now_iso()
        self._change("running", "ok")
        return self.get_info()

    def trial(self, config: DiffusionServerConfig, model: ModelInfo) -> Trial:
        """What an engine has to show with `model`, before it is used with this configuration."""

        def session(engine: Engine, port: int, on_line: Callable[[str, bool], None]) -> EngineSession:
            return self._open_session(engine, port, on_line, model=model)

        threads = config.threads or self._parts.system.threads()
        return Trial(
            kind="diffusion",
            model_id=model.id,
            size=model.size,
            session=session,
            flags=lambda port: arguments(config, model, port, threads),
            further_flags=config.extra_args,
        )

    async def _open_port(self, config: DiffusionServerConfig, key: str | None) -> Listener | None:
        if config.port is None and (self.mounted_url or self._listen is None):
            return None
        if self._listen is None:
            raise InvalidRequestError("port: this process cannot open an image port.", {"field": "port"})
        port = 0 if config.port == "auto" else config.port or DEFAULT_PORT
        if port:
            require_free(port)
        return await self._listen(self, port, key)

    async def _close(self) -> None:
        async with self._closing:
            for job in list(self._jobs.values()):
                # The job whose engine has just crashed reports that itself.
                if self._status != "crashed" or job.waiting:
                    await job.cancel(f"{self._title} has ended.")
            await self._unload()
            listener, self._listener = self._listener, None
            if listener is not None:
                await listener.close()

    def _crashed(self, error: ServerError) -> None:
        super()._crashed(error)
        self._spawn(self._close())

    async def is_healthy(self) -> bool:
        if self._status != "running":
            return False
        session = self._session
        # A model that is not loaded is no illness: the next image loads it.
        return session is None or await session.healthy(READY)

    def get_info(self) -> DiffusionServerInfo:
        session, listener = self._session, self._listener
        up = self._status in ("starting", "running", "stopping")
        return DiffusionServerInfo(
            status=self._status,
            health=self._health,
            owner=self._parts.owner,
            busy=bool(self._unfinished()),
            pid=session.pid if session else None,
            port=listener.port if listener else None,
            model_id=self._config.model_id if up and self._config else None,
            started_at=self._started_at if up else None,
            url=(f"http://{LOOPBACK}:{listener.port}" if listener else self.mounted_url) if up else None,
            api_key=self._api_key if up and listener else None,
            engine=self._engine.name if up and self._engine else None,
            error=self._error,
        )

    # ---- images ----

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
        """Paint, and wait for the result. Cancelling the wait cancels the generation.

        Args:
            config: an ImageGenerationConfig or dict instead of keywords; keywords on top of it win.
            prompt: what to paint.
            on_progress: called with (current_step, total_steps, stage, percentage).
            on_start: called with the generation's id.
            queue: wait for the turn instead of failing while another generation runs.
            fields: negative_prompt, width, height, steps, cfg_scale, seed, sampler, count.

        Raises:
            InvalidRequestError: a wrong field; it is named.
            ServerError: SERVER_NOT_RUNNING, SERVER_BUSY, GENERATION_CANCELLED or BACKEND_ERROR.
        """
        checked = from_keywords(ImageGenerationConfig, config, {"prompt": prompt, **fields})
        job = self._submit(checked, queue, deliver_here(on_progress) if on_progress else None)
        if on_start is not None:
            deliver_here(on_start)(job.id)
        try:
            return await job.result()
        except asyncio.CancelledError:
            await asyncio.shield(job.cancel())
            raise

    async def submit_generation(self, config: ImageGenerationConfig, *, queue: bool = False) -> GenerationState:
        """Begin a generation and return its pending state at once; `get_generation` tells how it goes.

        Raises:
            ServerError: as `generate_image`.
        """
        job = self._submit(config, queue, None)
        state = self.generations.get(job.id)
        assert state is not None
        return state

    async def cancel_image_generation(self, id: str | None = None) -> bool:
        """Cancel one generation, or all; final. False where there was nothing to cancel.

        A running one ends with its engine where the engine cannot drop a job; the model is then loaded again by the
        next image.
        """
        jobs = [job for job in self._unfinished() if id is None or job.id == id]
        for job in jobs:
            await job.cancel()
        return bool(jobs)

    def get_generation(self, id: str) -> GenerationState | None:
        """A snapshot of a generation, finished ones for five minutes; None where none is kept."""
        return self.generations.get(id)

    def _unfinished(self) -> list[ImageJob]:
        """The generations whose end their callers have not seen; a finished one may still be tidying up."""
        return [job for job in self._jobs.values() if not job.finished]

    def _submit(self, config: ImageGenerationConfig, queue: bool, on_progress: Callable[..., Any] | None) -> ImageJob:
        # Nothing is awaited between the check and the claim: of many requests at once, exactly one gets through.
        if self._status != "running":
            raise ServerError(
                f"Image generation is {self._status}.",
                code="SERVER_NOT_RUNNING",
                hint="Start it first: %genai start --images",
            )
        if (busy := self._unfinished()) and not queue:
            raise ServerError(
                "Another image is being generated.",
                {"id": busy[0].id},
                code="SERVER_BUSY",
                hint="Wait for it, cancel it, or ask with queue=True.",
            )
        job = ImageJob(
            config,
            self.generations,
            notify=self._parts.notify,
            drop_engine=self._drop_engine,
            on_progress=on_progress,
        )
        self._jobs[job.id] = job
        self._announce()
        self._spawn(self._work(job))
        return job

    async def _work(self, job: ImageJob) -> None:
        """One generation's life: its turn, room for it, the pictures, and the room given back."""
        try:
            async with self._turn:
                if not job.finished:
                    self._idle.stop()
                    await job.run(self._paint)
        finally:
            del self._jobs[job.id]
            # While more images wait in line, the LLM would come back only to leave again.
            if self.gate is not None and not self._jobs:
                self.gate.after_image()
            if self._session is not None and not self._jobs:
                self._idle.start()
            if self._status == "running":
                self._announce()

    async def _paint(self, job: ImageJob) -> None:
        if self.gate is not None:
            await self.gate.before_image()
        self._report.forget_out_of_memory()
        try:
            await job.paint(await self._load(job))
        except ServerError:
            # The estimate was too low. Once more, without the LLM, if that is still there.
            if self._report.out_of_memory is None or not self._is_whole() or self.gate is None:
                raise
            if not await self.gate.evict_llm():
                raise
            self._log.append("warn", f"out of memory ({self._report.out_of_memory}); once more without the LLM")
            await self._unload()
            await job.paint(await self._load(job))

    def _is_whole(self) -> bool:
        """Whether images can go on: no engine has died in the middle of one."""
        exit = self._session.exit if self._session is not None else None
        return self._status == "running" and not (exit is not None and exit.done())

    # ---- the resident engine ----

    async def _load(self, job: ImageJob) -> EngineSession:
        """The engine with the model in memory: the resident one, or a new one."""
        config, model = self._config, self._model
        assert config is not None
        assert model is not None
        self._line_listener = job.begin(self._calibration, loaded=self._session is not None)
        if self._session is not None:
            return self._session
        # With the engine of the start: nobody who wants a picture waits for a better one to be fetched.
        self._engine = await self._find_engine("diffusion", self.trial(config, model), stay=True)
        self._report = LoadReport()
        session = self._open_session(
            self._engine, free_port(), self._on_line, model=model, keep_debug=asks_for_debug(config)
        )
        try:
            threads = config.threads or self._parts.system.threads()
            await session.launch(arguments(config, model, session.port, threads))
            job.attach(session)
            await session.wait_until_ready(READY)
        except BaseException:
            await stop_quietly(session)
            raise
        self._session = session
        if (found := self._report.footprint) is not None:
            await asyncio.to_thread(self._footprints.remember, self._footprint_key(), found)
        self._announce()
        self._watch(session, READY)
        return session

    @property
    def footprint(self) -> Footprint | None:
        """Bytes that the engine said the model took when it was loaded last, or None where that is not known."""
        return self._footprints.recall(self._footprint_key()) if self._model and self._engine else None

    @property
    def may_use_gpu(self) -> bool:
        """Whether the model may be loaded onto a GPU, if there is one."""
        on_cpu = self._config is not None and self._config.gpu_layers == 0
        return not on_cpu and (self._engine is None or self._engine.gpu is not False)

    def _footprint_key(self) -> str:
        assert self._model is not None
        assert self._engine is not None
        assert self._config is not None
        return footprint_key(self._model, self._engine.name, memory_flags(self._config))

    async def release(self) -> bool:
        """Give the memory of the idle engine back, and wait until it is free; the next image loads the model again.

        False: none was loaded, or an image is being made.
        """
        session = self._session
        watch = await asyncio.to_thread(self._parts.system.watch, session.pid if session else None)
        if self._jobs or not await self._unload():  # an image may have begun in the meantime
            return False
        await watch.wait()
        return True

    async def _unload(self) -> bool:
        """End the resident engine. False: none was loaded."""
        self._idle.stop()
        loaded = self._session is not None
        await self._end_session()
        if loaded and self._status == "running":
            self._announce()
        return loaded

    async def _drop_engine(self, session: EngineSession) -> None:
        """End the engine in the middle of a job: the only way to cancel what an engine cannot."""
        if self._session is session:
            self._session = None
        await session.stop(0)

    def _on_line(self, text: str, is_bar: bool) -> None:
        self._report.feed(text, is_bar)
        if self._line_listener is not None:
            self._line_listener(text)

    async def _end_idle(self) -> None:
        if not self._jobs and await self._unload():
            self._log.append("info", f"the image model was idle for {IDLE_LIMIT:.0f} s; its memory is free again")
