"""The image routes on a port of their own, for programs that know no Jupyter token.

Bound to 127.0.0.1. What arrives must name this machine in its `Host` header (a rebound name does not), come from no
other web page (`Origin`), carry JSON, and show the key, unless the user switched the key off. No CORS.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from genai_notebook.core.processes.ports import holder_of
from genai_notebook.core.schema import ImageGenerationConfig
from genai_notebook.core.validation import from_json
from genai_notebook.errors import GenaiNotebookError, InvalidRequestError, PortInUseError
from genai_notebook.server import images
from genai_notebook.server.replies import MAX_BODY, BodyTooLargeError, NotFoundError, encode, error_reply

if TYPE_CHECKING:
    from genai_notebook.core.servers.diffusion import DiffusionServerManager

log = logging.getLogger("genai_notebook")

ADDRESS = "127.0.0.1"


class Listener:
    """The open port. `port` is the one that was taken."""

    def __init__(self, server: HTTPServer, port: int) -> None:
        self._server: HTTPServer | None = server
        self.port = port

    async def close(self) -> None:
        """Stop listening and drop the connections. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            await server.close_all_connections()


async def listen(manager: DiffusionServerManager, port: int, api_key: str | None) -> Listener:
    """Serve `manager`'s image routes on 127.0.0.1.

    Args:
        manager: who does the work.
        port: 0 for any free one.
        api_key: what callers must show as ``Authorization: Bearer KEY``; None asks for nothing.

    Raises:
        PortInUseError: somebody else listens there, or the system does not allow it.
    """
    try:
        sockets = bind_sockets(port, ADDRESS)
    except OSError as error:
        raise PortInUseError(port, await asyncio.to_thread(holder_of, port)) from error
    actual: int = sockets[0].getsockname()[1]
    application = _application(manager, actual, api_key)
    server = HTTPServer(application, max_body_size=16 * MAX_BODY, idle_connection_timeout=600)
    server.add_sockets(sockets)
    return Listener(server, actual)


def _application(manager: DiffusionServerManager, port: int, api_key: str | None) -> Application:
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    if port == 80:
        hosts |= {"127.0.0.1", "localhost"}
    return Application(
        [
            (r"/v1/images/generations", GenerationsRoute),
            (r"/v1/images/generations/([^/]+)", GenerationRoute),
            (r"/health", HealthRoute),
            (r".*", UnknownRoute),
        ],
        manager=manager,
        api_key=api_key,
        hosts=hosts,
        log_function=lambda handler: log.debug("%s %s", handler.get_status(), handler.request.path),
    )


@stream_request_body
class PortHandler(RequestHandler):
    """The checks. They are made before anything of the body is kept."""

    def initialize(self) -> None:
        self.body = bytearray()
        self._too_large = False

    def set_default_headers(self) -> None:
        self.set_header("Server", "genai-notebook")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    @property
    def manager(self) -> Any:
        return self.settings["manager"]

    def prepare(self) -> None:
        hosts = self.request.headers.get_list("Host")
        if len(hosts) != 1 or hosts[0].lower() not in self.settings["hosts"]:
            raise HTTPError(403, "This port answers to 127.0.0.1 and localhost only.")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.settings["hosts"]}:
            raise HTTPError(403, "This port does not answer web pages.")
        if self.request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise HTTPError(403, "This port does not answer web pages.")
        self._check_key()
        if self.request.method == "POST" and not _is_json(self.request.headers.get("Content-Type", "")):
            raise HTTPError(415, "The Content-Type must be application/json.")

    def data_received(self, chunk: bytes) -> None:
        if len(self.body) + len(chunk) > MAX_BODY:
            self._too_large = True
            self.body.clear()
        if not self._too_large:
            self.body += chunk

    def image_config(self) -> ImageGenerationConfig:
        if self._too_large:
            raise BodyTooLargeError(MAX_BODY)
        return from_json(ImageGenerationConfig, bytes(self.body))

    def queue_flag(self) -> bool:
        text = self.get_query_argument("queue", "false")
        if text not in ("true", "false"):
            raise InvalidRequestError("queue: must be true or false.", {"field": "queue"})
        return text == "true"

    def reply(self, value: Any, status: int = 200) -> None:
        self.reply_bytes(encode(value), status)

    def reply_bytes(self, body: bytes, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(body)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc_info = kwargs.get("exc_info")
        status, body = error_reply(exc_info[1] if exc_info else None, status_code)
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        self.reply_bytes(body, status)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if not isinstance(value, (GenaiNotebookError, HTTPError)):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))  # type: ignore[arg-type]

    def _check_key(self) -> None:
        key: str | None = self.settings["api_key"]
        if key is None:
            return
        scheme, _, shown = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), key.encode()):
            raise HTTPError(401, "Show the key: Authorization: Bearer KEY.")


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


class GenerationsRoute(PortHandler):
    async def post(self) -> None:
        self.reply(await images.submit(self.manager, self.image_config(), self.queue_flag()), 201)


class GenerationRoute(PortHandler):
    async def get(self, id: str) -> None:
        self.reply_bytes(await images.state_json(self.manager, id))

    async def delete(self, id: str) -> None:
        self.reply(await images.cancel(self.manager, id))


class HealthRoute(PortHandler):
    async def get(self) -> None:
        self.reply(images.health(self.manager))


class UnknownRoute(PortHandler):
    def prepare(self) -> None:
        super().prepare()
        raise NotFoundError(f"There is no route {self.request.path}.")
