"""sd-server's job API over HTTP, with the standard library.

The port has no key, as sd-server's has none. What keeps web pages out: only requests whose Host is this machine are
answered, none that carry a foreign Origin, and jobs must call themselves JSON, which a page cannot send elsewhere
without asking first; no such question is ever answered with yes (there are no CORS headers at all).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol
from urllib.parse import urlsplit

from genai_notebook.core.engines.embedded.sd_jobs import JobBoard, QueueFullError
from genai_notebook.core.engines.embedded.sd_requests import ImageRequest, RequestError, read_request

MAX_BODY = 64 << 20
_JOB = re.compile(r"/sdcpp/v1/jobs/([A-Za-z0-9_-]{1,80})(/cancel)?")


class Paints(Protocol):
    """What is asked about a request before it is queued; samplers and schedulers by the names that requests use."""

    @property
    def samplers(self) -> Iterable[str]: ...

    @property
    def schedulers(self) -> Iterable[str]: ...

    def check_images(self, request: ImageRequest) -> None:
        """Raises:
        RequestError: one of its pictures is none.
        """
        ...


class JobServer(ThreadingMixIn, TCPServer):
    """Bound at once, answering only after `open_for`: until the model is loaded, connections are refused."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), JobHandler, bind_and_activate=False)
        self.painter: Paints
        self.board: JobBoard
        self.capabilities: bytes
        self.loopback_only = _is_loopback(host)
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    @property
    def port(self) -> int:
        """The port it got."""
        return int(self.server_address[1])

    def open_for(self, painter: Paints, board: JobBoard, capabilities: dict[str, Any]) -> None:
        """Begin to answer."""
        self.painter, self.board = painter, board
        self.capabilities = json.dumps(capabilities).encode()
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class JobHandler(BaseHTTPRequestHandler):
    """One connection."""

    server: JobServer
    protocol_version = "HTTP/1.1"
    server_version = "sd-server"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 300

    def do_GET(self) -> None:
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            # A body that nobody reads must not be taken for the next request.
            self.close_connection = True
        if not self._welcome():
            return
        path = urlsplit(self.path).path
        if path == "/sdcpp/v1/capabilities":
            self._send(200, self.server.capabilities)
        elif (match := _JOB.fullmatch(path)) and not match[2]:
            job = self.server.board.describe(match[1])
            self._reply(200, job) if job else self._no_job(match[1])
        else:
            self._fail(404, "not found")

    def do_POST(self) -> None:
        if not self._welcome():
            return
        body = self._body()
        if body is None:
            return
        path = urlsplit(self.path).path
        if path == "/sdcpp/v1/img_gen":
            self._submit(body)
        elif (match := _JOB.fullmatch(path)) and match[2]:
            self._cancel(match[1])
        else:
            self._fail(404, "not found")

    def _submit(self, body: bytes) -> None:
        kind = self.headers.get_content_type()
        if kind != "application/json":
            self._fail(415, f"Content-Type must be application/json, not {kind}")
            return
        painter = self.server.painter
        try:
            modes = getattr(painter, "preview_modes", ("none",))
            request = read_request(body, list(painter.samplers), list(painter.schedulers), modes)
            painter.check_images(request)
            job = self.server.board.submit(request)
        except RequestError as error:
            self._fail(400, str(error), field=error.field)
        except QueueFullError:
            self._fail(429, "job queue is full")
        else:
            self._reply(
                202,
                {
                    "id": job.id,
                    "kind": "img_gen",
                    "status": "queued",
                    "created": job.created,
                    "poll_url": f"/sdcpp/v1/jobs/{job.id}",
                },
            )

    def _cancel(self, id: str) -> None:
        answer = self.server.board.cancel(id)
        if answer is None:
            self._no_job(id)
        elif answer[0]:
            self._reply(200, answer[1])
        else:
            self._fail(409, "job is currently generating and cannot be interrupted")

    def _no_job(self, id: str) -> None:
        if self.server.board.expired(id):
            self._fail(410, "job expired")
        else:
            self._fail(404, "job not found")

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _welcome(self) -> bool:
        host = urlsplit("//" + self.headers.get("Host", "")).hostname
        if self.server.loopback_only and (host is None or not _is_loopback(host)):
            self._fail(403, "this Host is not served here", close=True)
            return False
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            self._fail(403, "this Origin is not served here", close=True)
            return False
        return True

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,12}", length):
            self._fail(411, "a Content-Length is needed", close=True)
        elif int(length) > MAX_BODY:
            self._fail(413, f"the body must not be larger than {MAX_BODY} bytes", close=True)
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True
        return None

    # ---- what goes out ----------------------------------------------------------------------------------------------

    def _reply(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode())

    def _fail(self, status: int, message: str, *, field: str | None = None, close: bool = False) -> None:
        self.close_connection = self.close_connection or close
        self._reply(status, {"error": message, "field": field} if field else {"error": message})

    def _send(self, status: int, body: bytes) -> None:
        """Status, headers and body in one write: two would wait for each other on a slow acknowledgement."""
        reason = HTTPStatus(status).phrase
        connection = "close" if self.close_connection else "keep-alive"
        head = (
            f"HTTP/1.1 {status} {reason}\r\nServer: {self.server_version}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
        )
        self.wfile.write(head.encode("ascii") + body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (a broken request line, an unknown method), in our form."""
        self.close_connection = True
        self._fail(int(code), message or "bad request")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they would drown the progress."""


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
