"""One image generation from its claim to its last word in the registry."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from genai_notebook.core.engines import sdcpp
from genai_notebook.core.engines.session import EngineSession
from genai_notebook.core.processes.launcher import Exit
from genai_notebook.core.schema import (
    GeneratedImage,
    GenerationFailure,
    GenerationOutput,
    ImageBatchResult,
    ImageGenerationConfig,
    ImageGenerationResult,
)
from genai_notebook.core.servers.generations import GenerationRegistry
from genai_notebook.core.servers.progress import Calibration, ProgressTracker
from genai_notebook.errors import GenaiNotebookError, ServerError

log = logging.getLogger("genai_notebook")

#: Seconds between looks at a job. Each look costs the engine a little of the processor it paints with, so they are rare
#: until the log says that the picture is decoded.
POLL, POLL_AT_THE_END = 0.25, 0.005
#: Seconds between reports of time-driven progress (loading, decoding).
REPORT = 0.2
#: Seconds without any progress after which a job counts as stuck (a GPU that hangs says "generating" for ever).
STUCK = 600.0


class ImageJob:
    """A generation under way. Created with the claim, finished exactly once.

    Args:
        registry: where its state is kept for whoever polls.
        notify: told every change.
        drop_engine: ends an engine that cannot drop a job by itself.
        on_progress: told (current_step, total_steps, stage, percentage).
    """

    def __init__(
        self,
        config: ImageGenerationConfig,
        registry: GenerationRegistry,
        *,
        notify: Callable[[str, dict[str, Any]], None],
        drop_engine: Callable[[EngineSession], Awaitable[None]],
        on_progress: Callable[..., Any] | None,
    ) -> None:
        self._registry = registry
        self._notify = notify
        self._drop_engine = drop_engine
        self._on_progress = on_progress
        seed = config.seed if config.seed is not None and config.seed >= 0 else secrets.randbelow(2**31 - 5)
        self.config = msgspec.structs.replace(config, seed=seed)
        self.id = self._registry.create(config)
        self._seed = seed
        self._done: asyncio.Future[ImageGenerationResult | ImageBatchResult] = (
            asyncio.get_running_loop().create_future()
        )
        # Nobody may be waiting for it (HTTP clients poll): no "exception was never retrieved".
        self._done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._task: asyncio.Task[None] | None = None
        self._session: EngineSession | None = None
        self._tracker: ProgressTracker | None = None
        self._engine_job: str | None = None
        self._reported = 0.0
        self._moved = time.monotonic()
        self._decoded = asyncio.Event()

    @property
    def finished(self) -> bool:
        return self._done.done()

    @property
    def waiting(self) -> bool:
        """Whether its turn has not come yet."""
        return self._task is None

    async def result(self) -> ImageGenerationResult | ImageBatchResult:
        """Wait for the pictures, or for the error that ended the job."""
        return await asyncio.shield(self._done)

    async def run(self, paint: Callable[[ImageJob], Awaitable[None]]) -> None:
        """Do the work as a task that `cancel` can end; whatever ends it is written down."""
        self._registry.update(self.id, status="in_progress")
        self._announce("in_progress")
        self._task = asyncio.ensure_future(paint(self))
        await asyncio.wait({self._task})
        if self._task.cancelled():
            self._fail(ServerError("The generation was cancelled.", code="GENERATION_CANCELLED"))
        elif error := self._task.exception():
            self._fail(error)

    async def cancel(self, reason: str = "The generation was cancelled.") -> None:
        """End the job for good and wait until its engine is free or gone."""
        if self.finished:
            return
        # First the verdict: whatever the engine still says comes too late.
        self._fail(ServerError(reason, code="GENERATION_CANCELLED"))
        session, engine_job = self._session, self._engine_job
        dropped = bool(session and engine_job and await sdcpp.cancel_job(session.client, engine_job))
        over = self._task is not None and self._task.done()
        # If it is over by now, the engine belongs to the next job.
        if session is not None and not dropped and not over:
            await self._drop_engine(session)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    # ---- the work ----

    def begin(self, calibration: Calibration, *, loaded: bool) -> Callable[[str], None]:
        """Progress begins; returns what wants the engine's lines."""
        # A second try goes on where the first one had come: percentages never fall.
        floor = self._tracker.best if self._tracker is not None else 0.0
        self._tracker = ProgressTracker(self.config, calibration, loaded=loaded, floor=floor)
        self._report(force=True)
        return self._read_line

    def attach(self, session: EngineSession) -> None:
        self._session = session

    async def paint(self, session: EngineSession) -> None:
        """All images of the request, one engine job each."""
        assert self._tracker is not None
        self._session = session
        self._tracker.loaded()
        began = time.monotonic()
        images: list[ImageGenerationResult] = []
        for number in range(1, self.config.count + 1):
            if self.finished:
                return  # cancelled between two pictures
            self._tracker.begin_image(number)
            images.append(await self._paint_one(session, self._seed + number - 1))
        self._succeed(images, round((time.monotonic() - began) * 1000))

    async def _paint_one(self, session: EngineSession, seed: int) -> ImageGenerationResult:
        began = time.monotonic()
        self._engine_job = await sdcpp.post_job(session.client, self.config, seed)
        try:
            state = await self._follow(session, self._engine_job)
        finally:
            self._engine_job = None
        image = sdcpp.job_image(state, self.config)
        return ImageGenerationResult(
            image=image,
            format="png",
            time_taken=round((time.monotonic() - began) * 1000),
            seed=seed,
            width=self.config.width,
            height=self.config.height,
            id=self.id,
        )

    async def _follow(self, session: EngineSession, engine_job: str) -> dict[str, Any]:
        assert session.exit is not None
        self._moved = time.monotonic()
        self._decoded.clear()
        while not session.exit.done():
            state = await self._look(session, engine_job)
            if state is None:
                break
            if state.get("status") == "completed":
                return state
            if state.get("status") in ("failed", "cancelled"):
                raise session.error(f"The engine could not paint: {sdcpp.failure_of(state)}")
            if time.monotonic() - self._moved > STUCK:
                await self._drop_engine(session)
                raise session.error(f"The engine made no progress for {STUCK:.0f} s and was ended.")
            self._report()
            await self._pause(session.exit)
        await asyncio.wait({session.exit}, timeout=1.0)
        raise session.ended("in the middle of an image")

    async def _pause(self, exit: asyncio.Task[Exit]) -> None:
        """Until the next look: soon when the picture is decoded or the engine has ended, else later."""
        if self._decoded.is_set():
            await asyncio.wait({exit}, timeout=POLL_AT_THE_END)
            return
        decoded = asyncio.ensure_future(self._decoded.wait())
        try:
            await asyncio.wait({exit, decoded}, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
        finally:
            decoded.cancel()

    async def _look(self, session: EngineSession, engine_job: str) -> dict[str, Any] | None:
        """The job's state; None when the engine is going away."""
        try:
            return await sdcpp.job_state(session.client, engine_job)
        except ServerError:
            assert session.exit is not None
            # An engine that dies closes its connections a moment before its exit is known.
            await asyncio.wait({session.exit}, timeout=1.0)
            if session.exit.done():
                return None
            raise

    # ---- progress ----

    def _read_line(self, line: str) -> None:
        if self._tracker is not None and not self.finished and self._tracker.feed(line):
            self._moved = time.monotonic()
            self._report(force=True)
            if self._tracker.decoded:
                self._decoded.set()

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._tracker is None or self.finished or (not force and now - self._reported < REPORT):
            return
        self._reported = now
        self._publish(self._tracker.current())

    def _publish(self, progress: Any) -> None:
        self._registry.update(self.id, progress=progress)
        self._announce("in_progress", progress)
        if self._on_progress is not None:
            self._on_progress(progress.current_step, progress.total_steps, progress.stage, progress.percentage)

    def _announce(self, status: str, progress: Any = None) -> None:
        data: dict[str, Any] = {"id": self.id, "status": status}
        if progress is not None:
            data["progress"] = msgspec.to_builtins(progress)
        self._notify("generation", data)

    # ---- the end ----

    def _succeed(self, images: list[ImageGenerationResult], time_taken: int) -> None:
        if self.finished:
            return
        assert self._tracker is not None
        self._publish(self._tracker.finish())
        output = GenerationOutput(
            images=[
                GeneratedImage(image=image.image, seed=image.seed, width=image.width, height=image.height)
                for image in images
            ],
            format="png",
            time_taken=time_taken,
        )
        self._registry.update(self.id, status="complete", result=output)
        self._announce("complete")
        single = len(images) == 1
        self._done.set_result(
            images[0] if single else ImageBatchResult(images=images, time_taken=time_taken, id=self.id)
        )

    def _fail(self, error: BaseException) -> None:
        if self.finished:
            return
        if not isinstance(error, GenaiNotebookError):
            log.error("an image generation failed", exc_info=error)
            error = ServerError(f"The generation failed: {error!r}", code="INTERNAL_ERROR")
        if error.code == "SERVER_ERROR":
            error.code = "BACKEND_ERROR"  # what the reference calls an engine's failure
        failure = GenerationFailure(message=error.message, code=error.code, details=error.details, hint=error.hint)
        self._registry.update(self.id, status="error", error=failure)
        self._announce("error")
        self._done.set_exception(error)
