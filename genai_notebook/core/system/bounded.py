"""A question that may hang: asked in a thread of its own, cut off after a while, never asked twice at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("genai_notebook")

#: Seconds that a driver or a tool has to answer.
LIMIT = 2.0
#: Seconds that a program which did not answer is left alone.
REST = 30.0

T = TypeVar("T")


class Bounded(Generic[T]):
    """One kind of question to one driver or tool.

    A call into a driver that hangs cannot be ended from outside; its thread is left alone (it is a daemon) and, until
    it comes back, nobody waits for it again. Callers that ask at the same time share one answer.

    Args:
        name: whom we ask, for the log.
        limit: seconds.
        rest: seconds after one that took too long in which it is not asked again. For programs: they are killed, so
            the next question would cost the same time again.
    """

    def __init__(self, name: str, limit: float = LIMIT, rest: float = 0.0) -> None:
        self.name = name
        self.limit = limit
        self.rest = rest
        self._lock = threading.Lock()
        self._asking: _Asking[T] | None = None

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to `question`.

        Raises:
            TimeoutError: there is none in time, an earlier question still hangs, or it is given its rest.
            Exception: whatever the question raised.
        """
        with self._lock:
            asking = self._asking
            if asking is not None and asking.given_up and time.monotonic() < asking.deadline + self.rest:
                raise TimeoutError(f"{self.name} did not answer a moment ago")
            if asking is None or not asking.thread.is_alive():
                asking = self._asking = _Asking(question, self.name, self.limit)
        asking.thread.join(max(0.0, asking.deadline - time.monotonic()))
        if asking.thread.is_alive():
            if not asking.given_up:
                asking.given_up = True
                log.warning("%s does not answer within %g s; going on without", self.name, self.limit)
            raise TimeoutError(f"{self.name} does not answer")
        if asking.error is not None:
            raise asking.error
        return asking.answers[0]


class _Asking(Generic[T]):
    """One question under way: the thread that asks, and what came of it."""

    def __init__(self, question: Callable[[], T], name: str, limit: float) -> None:
        self.question = question
        self.answers: list[T] = []
        self.error: Exception | None = None
        self.given_up = False
        self.deadline = time.monotonic() + limit
        self.thread = threading.Thread(target=self._ask, name=f"genai-probe: {name}", daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        try:
            self.answers.append(self.question())
        except Exception as error:
            self.error = error
