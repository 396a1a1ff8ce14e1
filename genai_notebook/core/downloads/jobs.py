"""Downloads as jobs: each on a thread of its own, watched by any number of listeners, cancelled from anywhere."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.downloads.work import Work, cancelled_error, is_cancelled
from genai_notebook.core.schema import DownloadJob
from genai_notebook.core.utilities import generate_id
from genai_notebook.errors import DownloadError, GenaiNotebookError, InvalidRequestError

log = logging.getLogger("genai_notebook")

T = TypeVar("T")
#: Downloads at once; more of them wait in line.
AT_ONCE = 3
#: Listeners hear at most ten times a second, and always of the last byte.
REPORT_INTERVAL = 0.1
RATE_WINDOW = 5.0
#: Finished jobs that are still listed.
KEPT = 20
#: How long a cancelled job may take to wind down before its waiters are released anyway.
WIND_DOWN = 3.0


class Job(Generic[T]):
    """One download. `key` tells two requests for the same thing apart from two different ones."""

    def __init__(
        self, name: str, key: object, run: Callable[[Work], T], on_job: Callable[[DownloadJob], None] | None
    ) -> None:
        self.id = generate_id()
        self.name = name
        self.key = key
        self.run = run
        self.status: Any = "queued"
        self.downloaded = 0
        self.total: int | None = None
        self.error: str | None = None
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.work = Work(self._progress, self._phase)
        #: Callers that wait and would take the job with them; a started job that nobody waits for counts as one.
        self.waiters = 0
        self._on_job = on_job
        self._listeners: list[Callable[[int, int | None], None]] = []
        self._samples: collections.deque[tuple[float, int]] = collections.deque()
        self._reported = 0.0
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        return self.future.done()

    def snapshot(self) -> DownloadJob:
        return DownloadJob(
            id=self.id,
            model_name=self.name,
            status=self.status,
            downloaded=self.downloaded,
            rate=self._rate(),
            total=self.total,
            error=self.error,
        )

    def listen(self, listener: Callable[[int, int | None], None]) -> None:
        """Add a thread-safe listener; it hears where the job stands, then of its progress."""
        with self._lock:
            self._listeners.append(listener)
        if self.downloaded or self.total:
            listener(self.downloaded, self.total)

    def finish(self, result: T | None, error: BaseException | None) -> None:
        """Settle the job, once; later calls change nothing."""
        with self._lock:
            if self.future.done():
                return
            if error is None:
                self.status = "complete"
                self.future.set_result(result)  # type: ignore[arg-type]
            else:
                self.status = "cancelled" if is_cancelled(error) else "error"
                self.error = str(error)
                self.future.set_exception(error)
        self._tell()

    def _phase(self, phase: str) -> None:
        if not self.finished and phase != self.status:
            self.status = phase
            self._tell()

    def _progress(self, downloaded: int, total: int | None) -> None:
        if self.finished:
            return
        now = time.monotonic()
        with self._lock:
            if downloaded < self.downloaded:  # a retry begins again: the old speed says nothing
                self._samples.clear()
            self.downloaded, self.total = downloaded, total
            self._samples.append((now, downloaded))
            while self._samples and now - self._samples[0][0] > RATE_WINDOW:
                self._samples.popleft()
            if now - self._reported < REPORT_INTERVAL and downloaded != total:
                return
            if downloaded:  # the first bytes are heard at once, however soon after the beginning they come
                self._reported = now
            listeners = list(self._listeners)
        for listener in listeners:
            listener(downloaded, total)
        self._tell()

    def _rate(self) -> float:
        with self._lock:
            if self.finished or len(self._samples) < 2:
                return 0.0
            (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def _tell(self) -> None:
        if self._on_job is not None:
            self._on_job(self.snapshot())


class Jobs(Generic[T]):
    """The downloads of one manager. Thread-safe.

    Args:
        on_job: called with a snapshot whenever a job changes (progress at most ten times a second), on the event loop
            from which the job was started, or on the callback thread where there was none.
    """

    def __init__(self, on_job: Callable[[DownloadJob], None] | None = None) -> None:
        self._on_job = on_job
        self._jobs: dict[str, Job[T]] = {}
        self._waiting: collections.deque[Job[T]] = collections.deque()
        self._running = 0
        self._lock = threading.Lock()
        self._closed = False

    def start(self, name: str, key: object, run: Callable[[Work], T]) -> Job[T]:
        """Start `run` on a thread of its own, or join the unfinished job with an equal key. Returns at once; beyond
        `AT_ONCE` jobs, the new one waits in line.
        """
        with self._lock:
            if self._closed:
                raise DownloadError("The model manager has been shut down.", {"reason": "closed"})
            for job in self._jobs.values():
                if job.key == key and not job.finished and not job.work.cancelled:
                    return job
            job = Job(name, key, run, deliver_here(self._on_job) if self._on_job else None)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._forget_old()
        self._launch()
        return job

    def get(self, job_id: str) -> Job[T]:
        """Raises:
        InvalidRequestError: there is no such job (any more).
        """
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise InvalidRequestError(f"There is no download {job_id!r}.", {"field": "job_id"})
        return job

    def detach(self, job: Job[T]) -> None:
        """Let the job go on though nobody waits for it."""
        with self._lock:
            job.waiters += 1

    def snapshots(self) -> list[DownloadJob]:
        with self._lock:
            jobs = list(self._jobs.values())
        return [job.snapshot() for job in jobs]

    async def wait(self, job: Job[T]) -> T:
        """The job's result, or its typed error. A job whose last waiter is cancelled is cancelled too."""
        with self._lock:
            job.waiters += 1
        try:
            await _settled(job)
            return job.future.result()
        except asyncio.CancelledError:
            with self._lock:
                alone = job.waiters == 1 and not job.finished
            if alone:
                await self._wind_down([job])
            raise
        finally:
            with self._lock:
                job.waiters -= 1

    async def cancel(self, job_id: str | None = None) -> None:
        """Cancel one job, or all; returns when they have ended (their files are gone), after 3 s at most."""
        with self._lock:
            jobs = list(self._jobs.values())
        if job_id is not None:
            jobs = [self.get(job_id)]
        await self._wind_down([job for job in jobs if not job.finished])

    async def close(self) -> None:
        """Cancel everything and start nothing more."""
        with self._lock:
            self._closed = True
        await self.cancel()

    async def _wind_down(self, jobs: list[Job[T]]) -> None:
        for job in jobs:
            job.work.cancel()
            with self._lock:
                queued = job in self._waiting
                if queued:
                    self._waiting.remove(job)
            if queued:
                job.finish(None, cancelled_error())
        if jobs:
            await asyncio.wait([asyncio.ensure_future(_settled(job)) for job in jobs], timeout=WIND_DOWN)
        for job in jobs:
            job.finish(None, cancelled_error())

    def _launch(self) -> None:
        """Give threads to the jobs that are next in line."""
        while True:
            with self._lock:
                if self._running >= AT_ONCE or not self._waiting:
                    return
                job = self._waiting.popleft()
                self._running += 1
            threading.Thread(target=self._carry, args=(job,), name=f"genai-download-{job.id}", daemon=True).start()

    def _carry(self, job: Job[T]) -> None:
        try:
            _run(job)
        finally:
            with self._lock:
                self._running -= 1
            self._launch()

    def _forget_old(self) -> None:
        finished = [job.id for job in self._jobs.values() if job.finished]
        for job_id in finished[: max(0, len(finished) - KEPT)]:
            del self._jobs[job_id]


async def _settled(job: Job[Any]) -> None:
    """Wait until the job has ended, however; its error is somebody else's to raise."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the waiter's loop has closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    job.future.add_done_callback(wake)
    await ended.wait()


def _run(job: Job[Any]) -> None:
    try:
        job.work.check()
        result = job.run(job.work)
    except GenaiNotebookError as error:
        job.finish(None, error)
    except BaseException as error:
        log.exception("the download of %s failed", job.name)
        job.finish(None, DownloadError(f"The download of {job.name} failed: {error!r}", {"reason": "internal"}))
    else:
        job.finish(result, None)
