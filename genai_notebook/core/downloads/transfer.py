"""The body of a file from a server that takes ranges: one connection, and more of them where that is faster.

Worker threads take stretches of what is missing, read, and write them into the part. The thread that runs the transfer
supervises: it reports progress, adds connections to a slow download, and decides what a failure means.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from genai_notebook.core.downloads.connection import PassingError, Reply
from genai_notebook.core.downloads.gaps import Gaps, Stretch
from genai_notebook.core.downloads.part import Part
from genai_notebook.core.downloads.work import Work
from genai_notebook.errors import DownloadError

#: A single connection that is slower than this many bytes per second, after so many seconds, gets company.
FAST, TRIAL = 150e6, 0.25
CONNECTIONS = 8
#: Less than this is left to one connection.
WORTHWHILE = 8 << 20
#: How long after the failure of one of several connections another is tried again.
CALM = 5.0
#: What is read and written at once: what the processor's own cache holds, and no less: each time has its price.
CHUNK = 512 << 10
#: A connection that brought less than this before it failed has brought nothing.
PROGRESS = 64 << 10
_TICK = 0.1
#: How long a transfer that failed waits for its threads. Only looking up a name can keep one longer.
_WIND_DOWN = 1.0


class Transfer:
    """Args:
    open: asks for bytes from … to before …; gives the checked answer.
    retry: waits after the n-th failure in a row, or raises it.
    end: wakes everybody who waits in `open` or for the bytes of an answer.
    """

    def __init__(
        self,
        part: Part,
        size: int,
        work: Work,
        open: Callable[[int, int], Reply],
        retry: Callable[[int, PassingError], None],
        end: Callable[[], None],
    ) -> None:
        self._part, self._size, self._work = part, size, work
        self._open, self._retry, self._end = open, retry, end
        self._gaps = Gaps(size, part.journal.done)
        self._change = threading.Condition()
        self._threads: set[threading.Thread] = set()
        #: How many connections there should be.
        self._wanted = 1
        #: When the first byte came since the transfer began, or began again, and what was there by then.
        self._trial: tuple[float, int] | None = None
        #: When one of several failed; and whether that was since one alone did.
        self._failed_at: float | None = None
        self._crowded = False
        self._over = False
        self._passing: PassingError | None = None
        self._fatal: BaseException | None = None

    def run(self) -> None:
        """Bring everything that is missing. Errors as `fetch`."""
        try:
            with self._work.on_cancel(self._stop):
                self._supervise()
        finally:
            if self._threads:
                self._stop()
                self._end()
                self._join()

    # ---- the supervisor

    def _supervise(self) -> None:
        failures, reached = 0, self._part.done
        while True:
            with self._change:
                self._staff()
                if not self._threads and self._fatal is None and self._passing is None:
                    break
                self._change.wait(_TICK)
                fatal, passing, self._passing = self._fatal, self._passing, None
            self._work.check()
            done = self._part.done
            self._work.report(done, self._size)
            if fatal is not None:
                raise fatal
            if passing is not None:
                failures = 1 if done - reached >= PROGRESS else failures + 1
                reached = done
                self._retry(failures, passing)
                self._trial = None
            self._reinforce(done, time.monotonic())
        self._work.check()

    def _staff(self) -> None:
        """As many workers as are wanted and have something to do."""
        while not self._over and len(self._threads) < self._wanted and self._fatal is None and self._passing is None:
            stretch = self._gaps.take(self._wanted)
            if stretch is None:
                return
            thread = threading.Thread(target=self._carry, args=(stretch,), name="genai-notebook-download", daemon=True)
            thread.start()  # it cannot end before it is among them: that takes the lock
            self._threads.add(thread)

    def _reinforce(self, done: int, now: float) -> None:
        """More connections, when one alone is slow and much is left."""
        if self._trial is None or done <= self._trial[1]:
            self._trial = (now, done)
            return
        began, at = self._trial
        with self._change:
            if self._wanted >= CONNECTIONS or now - began < TRIAL or self._gaps.missing < WORTHWHILE:
                return
            if self._failed_at is None:
                if (done - at) / (now - began) < FAST:
                    self._wanted = CONNECTIONS
                    self._gaps.shorten_all(CONNECTIONS)
            elif now - self._failed_at > CALM:
                # The server may not want so many: one more, now and then.
                self._failed_at = now
                self._wanted += 1

    def _stop(self) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()

    def _join(self) -> None:
        until = time.monotonic() + _WIND_DOWN
        with self._change:
            while self._threads and (left := until - time.monotonic()) > 0:
                self._change.wait(left)

    # ---- the workers

    def _carry(self, stretch: Stretch | None) -> None:
        try:
            buffer = memoryview(bytearray(CHUNK))
            while stretch is not None:
                try:
                    self._bring(stretch, buffer)
                finally:
                    with self._change:
                        self._gaps.give_back(stretch)
                with self._change:
                    enough = self._over or self._fatal or len(self._threads) > self._wanted
                    stretch = None if enough else self._gaps.take(self._wanted)
        except DownloadError as error:
            self._lose(error)
        except BaseException as error:
            self._fatal = error
        finally:
            with self._change:
                self._threads.discard(threading.current_thread())
                self._change.notify_all()

    def _lose(self, error: DownloadError) -> None:
        """A connection failed. While others go on, there is one less of them; the last one's failure counts."""
        with self._change:
            if len(self._threads) > 1:
                self._wanted, self._crowded = max(1, self._wanted - 1), True
                self._failed_at = time.monotonic()
            elif isinstance(error, PassingError):
                if self._crowded:
                    error.wait = None  # it may be for those that are only just gone that the server asks to wait
                self._passing, self._wanted, self._crowded = error, 1, False
            else:
                self._fatal = error

    def _bring(self, stretch: Stretch, buffer: memoryview) -> None:
        """All of a stretch, over as many answers as it takes: servers may send less than they are asked for."""
        while not self._over and stretch.left > 0:
            before = stretch.pos
            reply = self._open(stretch.pos, stretch.end)
            try:
                if not self._read(reply, stretch, buffer):
                    return
            finally:
                reply.close()
            if stretch.left > 0 and stretch.pos - before < PROGRESS:
                raise PassingError(
                    f"The download ended at {stretch.pos} of {self._size} bytes.",
                    {"reason": "length"},
                    hint="Try again later.",
                )

    def _read(self, reply: Reply, stretch: Stretch, buffer: memoryview) -> bool:
        """What an answer holds of a stretch; False when nothing more is wanted."""
        while not self._over and stretch.left > 0 and (count := reply.read(buffer[: stretch.left])):
            if not self._part.write(stretch.pos, buffer[:count]):
                return False
            with self._change:
                stretch.pos += count
        return not self._over
