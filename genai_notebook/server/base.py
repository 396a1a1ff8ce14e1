"""The base of all handlers under Jupyter: who may call, what a body may be, how answers and errors look.

Every method of a concrete handler carries ``@web.authenticated`` outside and ``@authorized`` inside; `authorized` fixes
action and resource at the first call, so a decorated function serves one HTTP method of one class and is never shared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from jupyter_server.base.handlers import APIHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from genai_notebook.core.validation import from_json
from genai_notebook.errors import GenaiNotebookError, InvalidRequestError
from genai_notebook.server.replies import MAX_BODY, BodyTooLargeError, encode, error_reply

if TYPE_CHECKING:
    from genai_notebook.core.runtime import Runtime
    from genai_notebook.server.extension import GenaiNotebookApp

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


@stream_request_body
class GenaiHandler(APIHandler):
    """JSON in, JSON out, behind Jupyter's authentication and authorisation.

    The request's body is streamed in, so that nothing of it is kept before the caller is known, and never more than
    `max_body` bytes.
    """

    auth_resource = "genai"
    max_body = MAX_BODY

    def initialize(self) -> None:
        self.body = bytearray()
        self._too_large = False
        self._gone = False
        self._work: asyncio.Future[Any] | None = None

    @property
    def house(self) -> GenaiNotebookApp:
        """The extension: Runtime, event streams, the proxy's HTTP client."""
        house: GenaiNotebookApp = self.settings["genai_notebook"]
        return house

    @property
    def runtime(self) -> Runtime:
        return self.house.runtime

    async def prepare(self) -> None:  # type: ignore[override]
        await super().prepare()
        # The decorators say the same; this also covers methods that a route does not have.
        if not self.current_user and self.request.method != "OPTIONS":
            raise HTTPError(403)
        self.set_header("Cache-Control", "no-store")
        await self.house.opened()

    def data_received(self, chunk: bytes) -> None:
        if len(self.body) + len(chunk) > self.max_body:
            self._too_large = True  # the rest is read and dropped, so that the caller gets to see the answer
            self.body.clear()
        if not self._too_large:
            self.body += chunk

    # ---- what a request says -------------------------------------------------------------------------------------

    def whole_body(self) -> bytes:
        """The body.

        Raises:
            BodyTooLargeError: it was longer than `max_body`.
        """
        if self._too_large:
            raise BodyTooLargeError(self.max_body)
        return bytes(self.body)

    def body_as(self, cls: type[S]) -> S:
        """The JSON body as a `cls`.

        Raises:
            InvalidRequestError: no JSON, not an object, or a wrong field.
        """
        return from_json(cls, self.whole_body())

    def no_body(self) -> None:
        """Refuse a body where none is expected, other than an empty object."""
        self.body_as(Nothing)

    def flag(self, name: str) -> bool:
        """A query argument that is true or false; absent is false."""
        text = self.get_query_argument(name, "").lower()
        if text not in _TRUE | _FALSE:
            raise InvalidRequestError(f"{name}: must be true or false.", {"field": name})
        return text in _TRUE

    def number(self, name: str, default: int) -> int:
        """A query argument that is a whole number, 0 or more."""
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise InvalidRequestError(f"{name}: must be a whole number.", {"field": name})
        return int(text)

    # ---- what an answer says -------------------------------------------------------------------------------------

    def reply(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self._say_sequence()
        self.finish(encode(value))

    def reply_nothing(self) -> None:
        self.set_status(204)
        self._say_sequence()
        self.finish()

    def _say_sequence(self) -> None:
        """How far the event stream had come when this was said: clients use it to tell older news from newer."""
        self.set_header("X-Genai-Sequence", str(self.house.events.sequence))

    async def while_connected(self, work: Awaitable[T]) -> T:
        """Await `work`, and cancel it when the client goes away."""
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        self._work = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._gone:
                raise StreamClosedError from None
            raise
        finally:
            self._work = None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._gone = True
        if self._work is not None:
            self._work.cancel()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc_info = kwargs.get("exc_info")
        status, body = error_reply(exc_info[1] if exc_info else None, status_code)
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        if getattr(self, "_jupyter_current_user", None):  # not for strangers
            self._say_sequence()
        self.finish(body)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if isinstance(value, (GenaiNotebookError, StreamClosedError)):
            self.log.debug("genai_notebook: %s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that says nothing."""
