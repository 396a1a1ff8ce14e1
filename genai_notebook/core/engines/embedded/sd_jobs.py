"""The jobs of the embedded image engine: a bounded queue, one worker, and what became of each job."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from genai_notebook.core.engines.embedded.sd_requests import ImageRequest

MAX_PENDING = 16
_KEPT_SECONDS = 600.0
_KEPT_JOBS = 64
_KEPT_BYTES = 256 << 20
_FINISHED = ("completed", "failed", "cancelled")


@dataclass
class Painted:
    """What a finished job has to show: base64 pictures and the seed of each."""

    images: list[str]
    seeds: list[int]


@dataclass
class Job:
    id: str
    request: ImageRequest | None
    output_format: str
    status: str = "queued"
    created: int = field(default_factory=lambda: int(time.time()))
    started: int | None = None
    completed: int | None = None
    ended: float = 0.0
    painted: Painted | None = None
    error: dict[str, str] | None = None
    preview: dict[str, Any] | None = None

    def size(self) -> int:
        return sum(map(len, self.painted.images)) if self.painted else 0


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


class JobBoard:
    """All jobs, and the thread that works on them one after the other.

    Args:
        paint: makes the pictures of one request; what it raises becomes the job's error.
        cancel: with True ends the running `paint` early, with False takes that back; None where the engine cannot.
    """

    def __init__(self, paint: Callable[[ImageRequest], Painted], cancel: Callable[[bool], None] | None = None) -> None:
        self._paint = paint
        self._cancel_running = cancel
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._gone: deque[str] = deque(maxlen=256)
        self._current: Job | None = None
        threading.Thread(target=self._work, name="painter", daemon=True).start()

    @property
    def can_cancel_running(self) -> bool:
        return self._cancel_running is not None

    def submit(self, request: ImageRequest) -> Job:
        """Put a request in the queue.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._changed:
            self._sweep()
            if sum(job.status not in _FINISHED for job in self._jobs.values()) >= MAX_PENDING:
                raise QueueFullError
            job = Job(f"job_{secrets.token_hex(8)}", request, request.output_format)
            self._jobs[job.id] = job
            self._queue.append(job)
            self._changed.notify()
            return job

    def show_preview(self, step: int, image: str) -> None:
        """Keep a preview of the running job, in place of an earlier one, until the job ends.

        Args:
            step: the step it was seen at, from 1.
            image: a small PNG as base64.
        """
        with self._changed:
            if self._current is not None and self._current.status == "generating":
                self._current.preview = {"step": step, "b64_json": image}

    def describe(self, id: str) -> dict[str, Any] | None:
        """The job as sd-server's API shows it, or None where there is none (any more)."""
        with self._changed:
            self._sweep()
            job = self._jobs.get(id)
            return self._json(job) if job else None

    def expired(self, id: str) -> bool:
        """Whether there was such a job."""
        with self._changed:
            return id in self._gone

    def cancel(self, id: str) -> tuple[bool, dict[str, Any]] | None:
        """Drop a job: (whether that was possible, the job), or None where there is none.

        Finished jobs stay as they are.
        """
        with self._changed:
            job = self._jobs.get(id)
            if job is None:
                return None
            if job.status == "generating":
                if self._cancel_running is None:
                    return False, self._json(job)
                self._cancel_running(True)
                self._finish(job, "cancelled")
            elif job.status == "queued":
                self._queue.remove(job)
                self._finish(job, "cancelled")
            return True, self._json(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                job = self._current = self._queue.popleft()
                job.status = "generating"
                job.started = int(time.time())
                request = job.request
                if self._cancel_running:
                    # One that came too late for the job before must not end this one.
                    self._cancel_running(False)
            assert request is not None
            try:
                painted, error = self._paint(request), None
            except Exception as failure:
                painted, error = None, str(failure) or type(failure).__name__
            with self._changed:
                if job.status == "generating":  # not cancelled meanwhile
                    self._finish(job, "completed" if painted else "failed", painted, error)

    def _finish(self, job: Job, status: str, painted: Painted | None = None, error: str | None = None) -> None:
        job.status = status
        job.completed = int(time.time())
        job.ended = time.monotonic()
        job.painted = painted
        job.request = job.preview = None  # an init image may be large
        if status == "cancelled":
            job.error = {"code": "cancelled", "message": "job cancelled by client"}
        elif status == "failed":
            job.error = {"code": "generation_failed", "message": error or "no reason given"}
        self._sweep()

    def _sweep(self) -> None:
        """Forget finished jobs that are old, or too many, or too big: the oldest first, never the latest."""
        finished = [job for job in self._jobs.values() if job.status in _FINISHED]
        finished.sort(key=lambda job: job.ended)
        size = sum(job.size() for job in finished)
        limit = time.monotonic() - _KEPT_SECONDS
        count = len(finished)
        for job in finished[:-1] if finished and finished[-1].ended > limit else finished:
            if job.ended > limit and count <= _KEPT_JOBS and size <= _KEPT_BYTES:
                break
            size -= job.size()
            count -= 1
            with contextlib.suppress(KeyError):
                del self._jobs[job.id]
            self._gone.append(job.id)

    def _json(self, job: Job) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        if job.painted:
            images = [
                {"index": index, "b64_json": image, "seed": seed}
                for index, (image, seed) in enumerate(zip(job.painted.images, job.painted.seeds, strict=True))
            ]
            result = {"output_format": job.output_format, "images": images, "seed": job.painted.seeds[0]}
        return {
            "id": job.id,
            "kind": "img_gen",
            "status": job.status,
            "created": job.created,
            "started": job.started,
            "completed": job.completed,
            "preview": job.preview,
            "queue_position": self._queue.index(job) + 1 if job.status == "queued" else 0,
            "result": result,
            "error": job.error,
        }
