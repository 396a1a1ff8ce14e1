"""Fetching a build while an event loop goes on, without waiting long for hosts that do not answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from genai_notebook.core.downloads.work import Work, is_cancelled
from genai_notebook.core.engines.catalog import Build
from genai_notebook.core.engines.places import release_name
from genai_notebook.core.engines.releases import Installed, Releases, Try
from genai_notebook.core.engines.verdicts import Verdicts
from genai_notebook.core.schema import EngineProgress, EngineStage
from genai_notebook.errors import BinaryError, ChecksumError, DownloadError, GenaiNotebookError

#: Seconds until the first bytes must have come, where another engine would do as well.
FIRST_CONTACT = 2.5
#: Seconds that a cancelled installation gets for letting go of its files.
WIND_DOWN = 3.0
#: Seconds without anything new after which a download is left for later, where another engine would do as well.
STALLED = 15.0
#: Seconds between reports.
INTERVAL = 0.1
SWITCHED_OFF = "downloads of engines are switched off (GENAI_NOTEBOOK_MIRROR=off)"

T = TypeVar("T")
OnProgress = Callable[[EngineProgress], None]


class NotNowError(Exception):
    """The build cannot be had right now; another time it may. `wished`: the user wants it so."""

    def __init__(self, reason: str, *, wished: bool = False) -> None:
        super().__init__(reason)
        self.wished = wished


class Arrivals:
    """Brings builds here.

    Args:
        allowed: False where the user has switched such downloads off.
    """

    def __init__(self, releases: Releases, verdicts: Verdicts, *, allowed: bool) -> None:
        self._releases = releases
        self._verdicts = verdicts
        self._allowed = allowed
        self._host = urlsplit(releases.mirror).hostname or releases.mirror

    async def bring(
        self, build: Build, accept: Try, progress: OnProgress, *, patient: bool, insist: bool = False
    ) -> Installed:
        """Install a build. Who stops waiting stops the download; it goes on from there the next time.

        Args:
            accept: tries the program before it is put into place; may raise UnusableError.
            patient: whether to wait for hosts that are slow to answer.
            insist: try although it has just failed.

        Raises:
            NotNowError: downloads are switched off, or the host cannot be reached.
            GenaiNotebookError, UnusableError: as `Releases.install`; `accept` said so.
        """
        self.require_allowed(build, insist)
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()

        def tell(news: EngineProgress, arriving: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                loop.call_soon_threadsafe(self._tell, news, arriving, heard, progress)

        stage = _Stage(build, tell)
        work = Work(stage.report, stage.enter)
        limit = None if patient else FIRST_CONTACT
        install = _on_thread(lambda: self._releases.install(build, work, accept, connect_limit=limit))
        try:
            if limit is not None:
                await self._contact(install, heard, limit)
                await self._while_it_moves(install, stage)
            installed = await asyncio.shield(install)
        except GenaiNotebookError as error:
            raise self._typed(build, error) from error
        finally:
            if not install.done():
                work.cancel()
                await asyncio.wait({install}, timeout=WIND_DOWN)
            if install.done() and not install.cancelled():
                install.exception()  # seen
        self._verdicts.note_unreached(build.archive.path, reached=True)
        return installed

    def require_allowed(self, build: Build, insist: bool) -> None:
        """Raises:
        NotNowError: downloads are switched off, or, unless one insists, this one has failed a moment ago.
        """
        if not self._allowed:
            raise NotNowError(SWITCHED_OFF, wished=True)
        reason = None if insist else self.postponed(build)
        if reason is not None:
            raise NotNowError(reason)

    def postponed(self, build: Build) -> str | None:
        """Why a build is not fetched by itself right now, or None where it would be."""
        if not self._allowed:
            return SWITCHED_OFF
        for what, words in ((self._host, "could not be reached"), (build.archive.path, "could not be fetched")):
            since = self._verdicts.unreached(what)
            if since is not None:
                name = self._host if what == self._host else build.archive.file
                return f"{name} {words} {_minutes(since)} ago"
        return None

    async def _contact(self, install: asyncio.Future[Installed], heard: asyncio.Event, limit: float) -> None:
        """Wait until there is news.

        Raises:
            NotNowError: there was none in time.
        """
        hearing = asyncio.ensure_future(heard.wait())
        either: set[asyncio.Future[Any]] = {hearing, install}
        try:
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hearing.cancel()
        if not heard.is_set() and not install.done():
            self._verdicts.note_unreached(self._host)
            raise NotNowError(f"{self._host} did not answer within {limit:g} s")

    async def _while_it_moves(self, install: asyncio.Future[Installed], stage: _Stage) -> None:
        """Wait for the end.

        Raises:
            NotNowError: nothing has moved for a while.
        """
        while not install.done():
            left = stage.moved + STALLED - time.monotonic()
            if left <= 0:
                self._verdicts.note_unreached(self._host)
                raise NotNowError(f"{self._host} has sent nothing for {STALLED:g} s")
            await asyncio.wait({install}, timeout=left)

    def _typed(self, build: Build, error: GenaiNotebookError) -> Exception:
        """What a failed installation means for the choice of an engine."""
        if isinstance(error, DownloadError) and (error.details or {}).get("reason") == "unreachable":
            self._verdicts.note_unreached(self._host)
            return NotNowError(error.message.rstrip("."))
        if isinstance(error, (DownloadError, ChecksumError, BinaryError)) and not is_cancelled(error):
            # The whole of it would come, and fail, again at the next start.
            self._verdicts.note_unreached(build.archive.path)
        return error

    def _tell(self, news: EngineProgress, arriving: bool, heard: asyncio.Event, progress: OnProgress) -> None:
        if not heard.is_set() and arriving:
            heard.set()
            if news.stage == "downloading":
                self._verdicts.note_unreached(self._host, reached=True)
        progress(news)


class _Stage:
    """What the worker thread does now, and how far it is."""

    def __init__(self, build: Build, tell: Callable[[EngineProgress, bool], None]) -> None:
        self._kind = build.kind
        self._name = release_name(build.kind, build.tag, build.variant)
        self._stage: EngineStage = "downloading"
        self._tell = tell
        self._told = 0.0
        self._last: tuple[str, int] | None = None
        #: Bytes that an earlier download has left: no sign of life of the host's.
        self._kept: int | None = None
        #: When something happened last.
        self.moved = time.monotonic()

    def enter(self, stage: EngineStage) -> None:
        self._stage, self._told, self._kept = stage, 0.0, None
        self.moved = time.monotonic()
        self._say(0, None, arriving=stage != "downloading")

    def report(self, done: int, total: int | None) -> None:
        self.moved = time.monotonic()
        self._kept = done if self._kept is None else min(self._kept, done)
        if time.monotonic() - self._told >= INTERVAL or done == total:
            self._say(done, total, arriving=self._stage != "downloading" or done > self._kept)

    def _say(self, done: int, total: int | None, *, arriving: bool) -> None:
        if (self._stage, done) == self._last:
            return
        self._told = time.monotonic() if arriving else 0.0  # the first bytes are news at once
        self._last = (self._stage, done)
        news = EngineProgress(kind=self._kind, engine=self._name, stage=self._stage, done=done, total=total)
        self._tell(news, arriving)


def _on_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """`call()` on a daemon thread: a process that ends in its middle does not wait for it."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="genai-notebook-install", daemon=True).start()
    return asyncio.wrap_future(outcome)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
